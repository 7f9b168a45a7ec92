"""The command line: options from configs, complaints in one sentence, lists, exit statuses."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import Field, fields
from functools import partial
from typing import Any, NoReturn

from pgprune.errors import PruningError
from pgprune.utils.options import C, Config, OptionType, check_item, choices_of, typed_fields
from pgprune.utils.process_ids import rank, world_size


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
        for field, kind in typed_fields(config):
            option: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
            option["help"] = _help(field)
            if kind.plain is bool:
                option["action"] = argparse.BooleanOptionalAction
            else:
                option["type"] = partial(_parse, field, kind)
                option["metavar"] = _metavar(field, kind)
                option["nargs"] = "+" if kind.many else None
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
    names = [field.name for field in fields(config) if field.name in present]
    return {name: _value(present[name]) for name in names}


def from_arguments(config: type[C], arguments: argparse.Namespace) -> C:
    """Builds a dataclass from parsed arguments.

    Args:
        config: a dataclass that the parser knows.
        arguments: what the parser returned.

    Returns:
        The dataclass, with its defaults for what was not given.
    """
    return config(**given(config, arguments))


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


def _parse(field: Field[Any], kind: OptionType, text: str) -> Any:
    """Returns the value of an option's text, or of one text of a list, for argparse."""
    value: Any = text
    if kind.optional and text.lower() == "none":
        return None
    if kind.many and "," in text and "=" not in text:  # name:option=value,option=value is one item
        flag, items = _flag(field.name), " ".join(filter(None, text.split(",")))
        raise argparse.ArgumentTypeError(f"is a list: write {flag} {items}, not {text}")
    if kind.plain in (int, float):
        try:
            value = kind.plain(text)
        except ValueError:
            pass  # stays a text, which the check then refuses in its own words
    try:
        return check_item(field, kind.plain, value)
    except PruningError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _value(parsed: Any) -> Any:
    """Returns what argparse made of an option as the config takes it; ``--list none`` is None."""
    if not isinstance(parsed, list):
        return parsed
    return None if parsed == [None] else tuple(parsed)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(field: Field[Any], kind: OptionType) -> str:
    if (choices := choices_of(field)) is not None:
        return "{" + ",".join(map(str, choices)) + "}"
    return {int: "N", float: "X"}.get(kind.plain, field.name.upper())


def _help(field: Field[Any]) -> str:
    """The help of a field with its default, made safe for argparse's own % formatting."""
    default = field.default
    if default is None:
        default = field.metadata.get("unset", "none")
    elif isinstance(default, bool):
        default = "on" if default else "off"
    elif isinstance(default, tuple):
        default = " ".join(map(str, default))
    return f"{field.metadata.get('help', '')} (default: {default})".strip().replace("%", "%%")
