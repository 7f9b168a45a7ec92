"""Settings as frozen dataclasses: an option is defined once, for the command line and for YAML.

@dataclass(frozen=True)
class DataConfig(Config):
    '''Data: what is read.'''

    batch_size: int = option(8, "sequences a batch", minimum=1)
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import Field, asdict, fields
from types import UnionType
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, get_args, get_origin, get_type_hints

import yaml

from pgprune.errors import PruningError

C = TypeVar("C", bound="Config")

_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


class OptionType(NamedTuple):
    """The type of a field.

    Attributes:
        plain: ``int``, ``float``, ``str`` or ``bool``; of a list, the type of its items.
        many: whether the value is a tuple of these.
        optional: whether it may be None.
    """

    plain: type
    many: bool
    optional: bool


def option(default: Any, help: str, **limits: Any) -> Any:
    """Defines a field of a ``Config``: an int, float, str or bool, or ``tuple[...]`` of these.

    Each may also be ``| None``, and a number ``| str`` if some ``words`` may stand in its place. A
    tuple is a list of values on the command line (``--rates 0.3 0.5``) and in YAML, and its limits
    hold for each value.

    Args:
        default: the value where nothing is given.
        help: what it means, in one line of at most 76 characters.
        limits: ``choices``, a container or a function that returns one, read whenever a value is
            checked or the help is shown; ``minimum`` and ``maximum`` (inclusive); ``above`` and
            ``below`` (exclusive); ``words``; ``unset``: what a default of None means.
    """
    return dataclasses.field(default=default, metadata={"help": help, **limits})


def same_option(config: type["Config"], name: str, default: Any) -> Any:
    """Defines a field with the help and the limits of the field ``name`` of another config."""
    return dataclasses.field(default=default, metadata=config.__dataclass_fields__[name].metadata)


class Config:
    """Base of frozen dataclasses whose fields are options; refuses what an option does not allow.

    Raises:
        PruningError: naming the field, the value and what is allowed.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __post_init__(self) -> None:
        """Checks every field; a subclass adds what several fields must agree on."""
        for field, kind in typed_fields(type(self)):
            try:
                check(field, kind, getattr(self, field.name))
            except PruningError as error:
                raise PruningError(f"{field.name} {error}") from None

    def absolute(self) -> Self:
        """Returns the options with absolute paths, which mean the same from any directory."""
        return self


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the fields of a dataclass as plain values, ready for YAML or JSON."""
    plain = asdict(config)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items()}


def from_dict(config: type[C], values: Mapping[str, Any], source: str = "the configuration") -> C:
    """Builds a dataclass from plain values by field name; absent fields take their defaults.

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
        field, kind = known[name]
        try:
            checked[name] = check(field, kind, value)
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


def typed_fields(config: type[Config]) -> list[tuple[Field[Any], OptionType]]:
    """Returns the fields of a dataclass, each with its type."""
    hints = get_type_hints(config)
    return [(field, _option_type(hints[field.name])) for field in fields(config)]


def _option_type(hint: Any) -> OptionType:
    members = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    plain = [member for member in members if member is not type(None)]
    if len(plain) == 2 and str in plain:  # a number, or one of some words
        plain.remove(str)
    many = len(plain) == 1 and get_origin(plain[0]) is tuple
    if many:
        plain = [item for item in get_args(plain[0]) if item is not Ellipsis]
    if len(plain) != 1 or plain[0] not in _KINDS:
        raise TypeError(
            f"a setting is an int, float, str or bool, a tuple of one of these, or None: {hint}"
        )
    return OptionType(plain[0], many, type(None) in members)


def choices_of(field: Field[Any]) -> Collection[Any] | None:
    """Returns the values that a field allows now; None where it has no such list."""
    choices = field.metadata.get("choices")
    return choices() if callable(choices) else choices


def check(field: Field[Any], kind: OptionType, value: Any) -> Any:
    """Returns a value as the field's type.

    Raises:
        PruningError: the value is not what the field allows.
    """
    if value is None and kind.optional:
        return None
    if not kind.many:
        return check_item(field, kind.plain, value)
    if not isinstance(value, list | tuple) or not value:
        raise PruningError(f"must be a list, not {value!r}")
    return tuple(check_item(field, kind.plain, item) for item in value)


def check_item(field: Field[Any], kind: type, value: Any) -> Any:
    """Returns one value, or one of a list, as the field's type; raises as ``check`` does."""
    if isinstance(value, str) and value in field.metadata.get("words", ()):
        return value
    if kind is float and type(value) is int:
        value = float(value)
    choices = choices_of(field)
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
    """Says what a field allows: "a number above 0 and below 1"."""
    words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
    limits = [
        f"{word} {field.metadata[key]}" for key, word in words.items() if key in field.metadata
    ]
    number = " ".join([_KINDS[kind], " and ".join(limits)]).strip()
    return " or ".join([number, *field.metadata.get("words", ())])
