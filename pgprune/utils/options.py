"""Settings as frozen dataclasses: an option is defined once, for the command line and for YAML.

@dataclass(frozen=True)
class DataConfig(Config):
    '''Data: what is read.'''

    batch_size: int = option(8, "sequences a batch", minimum=1)
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import Field, asdict, fields
from types import UnionType
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

import yaml

from pgprune.errors import PruningError

C = TypeVar("C", bound="Config")

_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def option(default: Any, help: str, **limits: Any) -> Any:
    """A field of a ``Config``: an ``int``, ``float``, ``str`` or ``bool``, or one of these or None.

    Args:
        default: the value where nothing is given.
        help: what it means, in one line.
        limits: ``choices``; ``minimum`` and ``maximum`` (inclusive); ``above`` and ``below``
            (exclusive); ``unset``: what a default of None means, in words.
    """
    return dataclasses.field(default=default, metadata={"help": help, **limits})


def same_option(config: type["Config"], name: str, default: Any) -> Any:
    """A field with the help and the limits of another config's field.

    Args:
        config: the other one.
        name: of its field.
        default: the value where nothing is given.
    """
    return dataclasses.field(default=default, metadata=config.__dataclass_fields__[name].metadata)


class Config:
    """Base of frozen dataclasses whose fields are options; refuses what an option does not allow.

    Raises:
        PruningError: naming the field, the value and what is allowed.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __post_init__(self) -> None:
        """Checks every field; a subclass adds what several fields must agree on."""
        for field, (kind, optional) in typed_fields(type(self)):
            try:
                check(field, kind, optional, getattr(self, field.name))
            except PruningError as error:
                raise PruningError(f"{field.name} {error}") from None


def to_dict(config: Config) -> dict[str, Any]:
    """The fields of a dataclass as plain values, ready for YAML or JSON."""
    return asdict(config)


def from_dict(config: type[C], values: Mapping[str, Any], source: str = "the configuration") -> C:
    """Builds a dataclass from plain values, such as those of a YAML section.

    Args:
        config: the dataclass.
        values: field names and values; absent fields take their defaults.
        source: where the values come from, for the error.

    Returns:
        The dataclass.

    Raises:
        PruningError: an unknown field, or a value that the field does not allow.
    """
    known = {field.name: (field, kind) for field, kind in typed_fields(config)}
    if unknown := [str(key) for key in values if key not in known]:
        raise PruningError(
            f"{source} has an unknown setting {unknown[0]!r}; the known ones are {', '.join(known)}"
        )
    checked = {}
    for name, value in values.items():
        field, (kind, optional) = known[name]
        try:
            checked[name] = check(field, kind, optional, value)
        except PruningError as error:
            raise PruningError(f"{source}: {name}: {error}") from None
    return config(**checked)


def dump_yaml(sections: Mapping[str, Config | Mapping[str, Any]]) -> str:
    """Writes dataclasses and plain mappings as the sections of one YAML text, in this order."""
    plain = {
        name: dict(section) if isinstance(section, Mapping) else to_dict(section)
        for name, section in sections.items()
    }
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def load_yaml(text: str, source: str) -> dict[str, dict[str, Any]]:
    """Reads what ``dump_yaml`` wrote.

    Args:
        text: the YAML text.
        source: where it comes from, for the error.

    Returns:
        The sections as plain values; ``from_dict`` makes dataclasses of them.

    Raises:
        PruningError: not YAML, or not sections of settings.
    """
    try:
        sections = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise PruningError(f"{source} is not readable as YAML: {reason}") from error
    if not isinstance(sections, dict) or not all(isinstance(s, dict) for s in sections.values()):
        raise PruningError(f"{source} does not hold sections of settings")
    return sections


def typed_fields(config: type[Config]) -> list[tuple[Field[Any], tuple[type, bool]]]:
    """The fields of a dataclass, each with its plain type and whether it may be None."""
    hints = get_type_hints(config)
    return [(field, _plain_type(hints[field.name])) for field in fields(config)]


def _plain_type(hint: Any) -> tuple[type, bool]:
    members = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    plain = [member for member in members if member is not type(None)]
    if len(plain) != 1 or plain[0] not in _KINDS:
        raise TypeError(f"a setting is an int, float, str or bool, or one of these or None: {hint}")
    return plain[0], len(members) == 2


def check(field: Field[Any], kind: type, optional: bool, value: Any) -> Any:
    """The value as the field's type.

    Raises:
        PruningError: the value is not what the field allows.
    """
    if value is None and optional:
        return None
    if kind is float and type(value) is int:
        value = float(value)
    choices = field.metadata.get("choices")
    wanted = f"one of {', '.join(map(str, choices))}" if choices else _wanted(field, kind)
    if type(value) is not kind or (choices and value not in choices) or not _in_range(field, value):
        raise PruningError(f"must be {wanted}, not {value!r}")
    return value


def _in_range(field: Field[Any], value: Any) -> bool:
    if not isinstance(value, int | float):
        return True
    limits = field.metadata
    return (
        math.isfinite(value)
        and limits.get("minimum", value) <= value <= limits.get("maximum", value)
        and limits.get("above", -math.inf) < value < limits.get("below", math.inf)
    )


def _wanted(field: Field[Any], kind: type) -> str:
    """What a field allows, in words: "a number above 0 and below 1"."""
    words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
    limits = [
        f"{word} {field.metadata[key]}" for key, word in words.items() if key in field.metadata
    ]
    return " ".join([_KINDS[kind], " and ".join(limits)]).strip()
