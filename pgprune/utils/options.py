"""Frozen dataclasses as command-line options and as YAML: one definition of every setting.

A field is an option of the same name with dashes. Its metadata explains and restricts it:

    batch_size: int = field(default=8, metadata={"help": "sequences a batch", "minimum": 1})

``help``; ``choices``; ``minimum`` and ``maximum`` (inclusive); ``above`` and ``below`` (exclusive);
``default``: the words for a default of None, such as "by the formula in docs/reinforce.md".
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, fields
from functools import partial
from types import UnionType
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar, get_args, get_type_hints

import yaml

from pgprune.errors import PruningError
from pgprune.utils.process_ids import rank, world_size


class Config(Protocol):
    """A dataclass whose fields are ``int``, ``float``, ``str`` or ``bool``, each maybe None."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


C = TypeVar("C", bound=Config)

_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser without abbreviations whose complaints are PruningErrors.

    Args:
        description: shown above the options.
        configs: dataclasses to add right away, as ``add`` does.
    """

    def __init__(self, description: str | None, *configs: type[Config]) -> None:
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for config in configs:
            self.add(config)

    def add(self, config: type[Config]) -> None:
        """Adds a dataclass as a group of options, titled by the first line of its docstring."""
        title = (config.__doc__ or config.__name__).strip().splitlines()[0].rstrip(".")
        group = self.add_argument_group(title)
        for field, (kind, optional) in _typed_fields(config):
            option: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
            option["help"] = _help(field)
            if kind is bool:
                option["action"] = argparse.BooleanOptionalAction
            else:
                option["type"] = partial(_parse, field, kind, optional)
                option["metavar"] = _metavar(field, kind)
            group.add_argument(_flag(field.name), **option)

    def error(self, message: str) -> NoReturn:
        """Raises a PruningError with argparse's message."""
        raise PruningError(f"{message.removeprefix('argument ')} (--help explains every option)")


def given(config: type[Config], arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of a dataclass that were written on the command line.

    Args:
        config: a dataclass that the parser knows.
        arguments: what the parser returned.

    Returns:
        Field names and values; what was left at its default is absent.
    """
    present = vars(arguments)
    return {field.name: present[field.name] for field in fields(config) if field.name in present}


def from_arguments(config: type[C], arguments: argparse.Namespace) -> C:
    """Builds a dataclass from parsed arguments.

    Args:
        config: a dataclass that the parser knows.
        arguments: what the parser returned.

    Returns:
        The dataclass, with its defaults for what was not given.
    """
    return config(**given(config, arguments))


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
    known = {field.name: (field, kind) for field, kind in _typed_fields(config)}
    if unknown := [str(key) for key in values if key not in known]:
        raise PruningError(
            f"{source} has an unknown setting {unknown[0]!r}; the known ones are {', '.join(known)}"
        )
    checked = {}
    for name, value in values.items():
        field, (kind, optional) = known[name]
        try:
            checked[name] = _check(field, kind, optional, value)
        except PruningError as error:
            raise PruningError(f"{source}: {name}: {error}") from None
    return config(**checked)


def check_fields(config: Config) -> None:
    """Refuses values that a dataclass's fields do not allow, for its ``__post_init__``.

    Raises:
        PruningError: naming the field, the value and what is allowed.
    """
    for field, (kind, optional) in _typed_fields(type(config)):
        try:
            _check(field, kind, optional, getattr(config, field.name))
        except PruningError as error:
            raise PruningError(f"{field.name} {error}") from None


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


def numbers(text: str, option: str) -> list[float]:
    """The positive numbers of a list such as "0.3,0.5".

    Args:
        text: numbers joined by commas.
        option: its name, for the error.

    Raises:
        PruningError: something else is in it.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < float("inf") for value in values):
        raise PruningError(f"{option} must be positive numbers joined by commas, not {text!r}")
    return values


def whole_numbers(text: str, option: str) -> list[int]:
    """The positive whole numbers of a list such as "1,8"; the rest is as ``numbers``."""
    values = numbers(text, option)
    if any(value % 1 for value in values):
        raise PruningError(f"{option} must be whole numbers joined by commas, not {text!r}")
    return [int(value) for value in values]


def run_command(main: Callable[[], int | None], replicas: bool = False) -> NoReturn:
    """Runs a command and leaves Python with its exit status.

    Args:
        main: the command; what it returns is the exit status, None is 0.
        replicas: whether it knows what to do with several processes.

    Raises:
        SystemExit: always; with status 2 after a PruningError, which becomes one line on stderr.
    """
    try:
        if not replicas and world_size() > 1:
            if rank() > 0:
                sys.exit(0)  # the main process says it
            raise PruningError(
                f"this command is for one process, not {world_size()}; start it without torchrun"
            )
        status = main()
    except PruningError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        status = 2
    sys.exit(status)


def _typed_fields(config: type[Config]) -> list[tuple[Field[Any], tuple[type, bool]]]:
    """The fields of a dataclass, each with its plain type and whether it may be None."""
    hints = get_type_hints(config)
    return [(field, _plain_type(hints[field.name])) for field in fields(config)]


def _plain_type(hint: Any) -> tuple[type, bool]:
    members = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    plain = [member for member in members if member is not type(None)]
    if len(plain) != 1 or plain[0] not in _KINDS:
        raise TypeError(f"a setting is an int, float, str or bool, or one of these or None: {hint}")
    return plain[0], len(members) == 2


def _parse(field: Field[Any], kind: type, optional: bool, text: str) -> Any:
    """The value of an option's text, for argparse."""
    value: Any = text
    if optional and text.lower() == "none":
        value = None
    elif kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            pass  # stays a text, which the check then refuses in its own words
    try:
        return _check(field, kind, optional, value)
    except PruningError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _check(field: Field[Any], kind: type, optional: bool, value: Any) -> Any:
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


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(field: Field[Any], kind: type) -> str:
    if "choices" in field.metadata:
        return "{" + ",".join(map(str, field.metadata["choices"])) + "}"
    return {int: "N", float: "X"}.get(kind, field.name.upper())


def _help(field: Field[Any]) -> str:
    """The help of a field with its default, made safe for argparse's own % formatting."""
    default = field.default
    if default is None:
        default = field.metadata.get("default", "none")
    elif isinstance(default, bool):
        default = "on" if default else "off"
    return f"{field.metadata.get('help', '')} (default: {default})".strip().replace("%", "%%")
