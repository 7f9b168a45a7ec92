"""Settings as frozen dataclasses: an option is defined once, for the command line and for YAML.

@dataclass(frozen=True)
class DataConfig(Config):
    '''Data: what is read.'''

    batch_size: int = option(8, "sequences a batch", minimum=1)
"""

import dataclasses
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import Field, asdict, fields
from types import UnionType
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, get_args, get_origin, get_type_hints

import yaml

from pgprune.errors import PruningError, first_line

C = TypeVar("C", bound="Config")

LARGEST = {int: 2**31 - 1, float: 10**6}
"""The largest number of an option that names no maximum; a larger one is a slip of the keyboard."""

SEEDS = 2**32 - 1
"""The largest seed that all generators of random numbers take."""

_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")  # tags of YAML
_LONGEST = 60  # characters of a wrong value that are shown


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
            checked or the help is shown; ``minimum`` and ``maximum`` (inclusive; ``LARGEST`` where
            none is given); ``above`` and ``below`` (exclusive); ``words``; ``unset``: what a
            default of None means.
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
        sections = yaml.load(text, _PlainLoader)
    # Texts that are no number, key or list where YAML has one raise errors of many types.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise PruningError(f"{source} is not readable as YAML: {first_line(error)}") from error
    except RecursionError:
        raise PruningError(f"{source} is not readable as YAML: it is nested too deeply") from None
    if not isinstance(sections, dict) or not all(isinstance(s, dict) for s in sections.values()):
        raise PruningError(f"{source} does not hold sections of settings")
    return sections


class _PlainLoader(yaml.SafeLoader):
    """Reads the values that JSON has as well, so that settings can be digested as JSON.

    An alias is refused: with a few of them, a short text stands for gigabytes.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith(":timestamp")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _PLAIN
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it repeats a part by an alias (*NAME); write the part out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if others := [key for key in found if not isinstance(key, str)]:
            raise yaml.YAMLError(f"a setting has the name {_shown(others[0])}, which is no text")
        return found


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
        raise PruningError(f"must be a list, not {_shown(value)}")
    return tuple(check_item(field, kind.plain, item) for item in value)


def check_item(field: Field[Any], kind: type, value: Any) -> Any:
    """Returns one value, or one of a list, as the field's type; raises as ``check`` does."""
    if isinstance(value, str) and value in field.metadata.get("words", ()):
        return value
    limits = _limits(field, kind)
    if kind is float and type(value) is int and abs(value) <= LARGEST[float]:
        value = float(value)
    choices = choices_of(field)
    wanted = f"one of {', '.join(map(str, choices))}" if choices else _wanted(field, kind, value)
    fits = type(value) is kind and (not choices or value in choices)
    if not fits or not _in_range(limits, value) or not is_readable(value):
        raise PruningError(f"must be {wanted}, not {_shown(value)}")
    return value


def at_home(text: str) -> str:
    """Returns a path with the home directory in the place of ``~``.

    Raises:
        PruningError: it is the home of an unknown user.
    """
    try:
        path = os.path.expanduser(text)
    except ValueError:  # no name of a user: a part of UTF-8, or a zero
        path = text
    if path.startswith("~"):
        raise PruningError(f"{text!r} begins with a home that is unknown; give the path without ~")
    return path


def is_readable(value: Any) -> bool:
    """Tells if a text can be written in UTF-8 and is a path; names of files may be neither."""
    return not isinstance(value, str) or not any(
        character == "\0" or "\ud800" <= character <= "\udfff" for character in value
    )


def _limits(field: Field[Any], kind: type) -> dict[str, Any]:
    """Returns the limits of a field by name, with the largest number of all options."""
    if kind not in LARGEST or "below" in field.metadata:
        return dict(field.metadata)
    return {"maximum": LARGEST[kind], **field.metadata}


def _in_range(limits: Mapping[str, Any], value: Any) -> bool:
    # An int is compared as it is: a long one is beyond floats.
    return not isinstance(value, int | float) or (
        limits.get("minimum", value) <= value <= limits.get("maximum", value)
        and limits.get("above", -math.inf) < value < limits.get("below", math.inf)
    )


def _wanted(field: Field[Any], kind: type, value: Any) -> str:
    """Says what a field allows: "a number above 0 and below 1"."""
    words = {"minimum": "at least", "above": "above", "maximum": "at most", "below": "below"}
    limits = dict(field.metadata)
    if isinstance(value, int | float) and kind in LARGEST and value > LARGEST[kind]:
        limits = _limits(field, kind)  # goes without saying else
    parts = [f"{word} {limits[key]:,}" for key, word in words.items() if key in limits]
    number = " ".join([_KINDS[kind], " and ".join(parts)]).strip()
    readable = "" if is_readable(value) else " in UTF-8"
    return " or ".join([number + readable, *field.metadata.get("words", ())])


def _shown(value: Any) -> str:
    """Returns a value as Python writes it, cut to a length that can be read."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of a number with thousands of digits; of deep lists
        return f"a very large {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
