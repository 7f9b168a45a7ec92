"""The command line: options from configs, help, errors in one sentence, exit statuses."""

import argparse
import errno
import io
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from functools import partial
from itertools import chain
from typing import Any, NoReturn

from pgprune.errors import PruningError, printable
from pgprune.utils.command_names import spelled
from pgprune.utils.options import (
    C,
    Config,
    OptionType,
    at_home,
    check_item,
    choices_of,
    is_readable,
    typed_fields,
)
from pgprune.utils.process_ids import rank, world_size

_COLUMNS = 100
HELP_WIDTH = 76
"""Columns of a help text, which begins in column 24."""

MAIN = (
    *(
        "model",
        "prune_rate",
        "target",
        "agent",
        "method",
        "calibration",
        "evaluation",
        "total_timesteps",
    ),
    *("granularity", "budget", "repair", "export", "output", "seed", "resume"),
)
"""The options that ``--help`` shows first, in this order, where a command has them."""


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser without abbreviations that raises a PruningError for a wrong option.

    Args:
        description: shown above the options; names commands as ``pgprune train``.
        configs: dataclasses to add right away, as ``add`` does.
        main: the fields that ``--help`` shows first, in this order.
    """

    def __init__(
        self, description: str | None, *configs: type[Config], main: Sequence[str] = MAIN
    ) -> None:
        super().__init__(
            prog=f"python {sys.argv[0]}" if sys.argv[0].endswith(".py") else sys.argv[0],
            description=None if description is None else spelled(description),
            allow_abbrev=False,
            formatter_class=HelpFormatter,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        self._main = main
        self.main_group = self.add_argument_group("Main options")
        for config in configs:
            self.add(config)

    def add(self, config: type[Config]) -> None:
        """Adds a dataclass as a group of options, titled by the first line of its docstring."""
        title = (config.__doc__ or config.__name__).strip().splitlines()[0].rstrip(".")
        group = self.add_argument_group(title)
        for field, kind in typed_fields(config):
            option: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
            option["help"] = help_of(field)
            if kind.plain is bool:
                option["action"] = argparse.BooleanOptionalAction
            else:
                option["type"] = partial(_parse, field, kind)
                option["metavar"] = _metavar(field, kind)
                option["nargs"] = "+" if kind.many else None
            place = self.main_group if field.name in self._main else group
            place.add_argument(_flag(field.name), **option)

    def format_help(self) -> str:
        """Returns the help: one line of usage, the main options, then the others by group."""
        order = {name: place for place, name in enumerate(self._main)}
        self.main_group._group_actions.sort(key=lambda action: order.get(action.dest, -1))
        self.usage = " ".join(["%(prog)s", *map(_positional, self._get_positional_actions())])
        self.usage += " [options]"
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses words as argparse does, after a look at how they are spelled.

        Raises:
            PruningError: a word is not UTF-8, so that no file could hold it, or begins with the
                home of an unknown user.
        """
        words = [*map(_at_home, sys.argv[1:] if args is None else args)]
        for word in words:
            if not is_readable(word):
                raise PruningError(
                    f"{ascii(word)} is not UTF-8, in which settings are saved; rename the file or "
                    "directory"
                )
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises a PruningError with argparse's message."""
        raise PruningError(f"{message.removeprefix('argument ')} (--help explains every option)")


def _at_home(word: str) -> str:
    """Puts the home directory in the place of ``~``, which shells leave alone in ``--output=~``."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{at_home(value)}" if value.startswith("~") else word


def given(config: type[Config], arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of a dataclass that were written on the command line, by field name."""
    present = vars(arguments)
    names = [field.name for field in fields(config) if field.name in present]
    return {name: _value(present[name]) for name in names}


def from_arguments(config: type[C], arguments: argparse.Namespace) -> C:
    """Builds a dataclass from parsed arguments, with its defaults for what was not given."""
    return config(**given(config, arguments))


def run_command(main: Callable[[], int | None], replicas: bool = False) -> NoReturn:
    """Runs a command and leaves Python with its exit status.

    Args:
        main: the command; what it returns is the exit status, None is 0.
        replicas: whether it knows what to do with several processes.

    Raises:
        SystemExit: always; with status 2 after a PruningError, which becomes one line on stderr, as
            does a file or a disk that the system refuses; with 130 after Ctrl-C.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # while packages were imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    on_terminal("\033[K")  # takes back what was said about imports
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # not every terminal or log is in UTF-8
    try:
        _check_directory()
        if not replicas and world_size() > 1:
            if rank() > 0:
                sys.exit(0)  # the main process says it
            raise PruningError(
                f"this command is for one process, not {world_size()}; start it without torchrun"
            )
        status = main()
        if sys.stdout is not None:
            sys.stdout.flush()  # what cannot be written is said here, not after Python's end
    except PruningError as error:
        status = _refused(str(error))
    except BrokenPipeError:  # whoever reads the output has read enough
        _discard_output()
        status = 141  # 128 + SIGPIPE, as shells report it
    except OSError as error:
        if error.filename is None and error.errno == errno.ENOSPC:
            _discard_output()
            status = _refused("standard output: no space left on its device; write it elsewhere")
        else:
            place = error.filename or "the system"
            status = _refused(f"{place}: {error.strerror}; check the path and its permissions")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


def on_terminal(text: str) -> None:
    """Writes on standard error as it is, if that is a terminal that can be steered."""
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        print(text, end="", file=sys.stderr, flush=True)


def _check_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise PruningError("the current directory is gone; change to another one") from error


def _discard_output() -> None:
    """Lets Python's end write nowhere what standard output does not take."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _refused(reason: str) -> int:
    """Says on one line why a command ends; returns its exit status."""
    print("error:", printable(spelled(" ".join(reason.split()))), file=sys.stderr)
    return 2


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
    word = "NAME" if "choices" in field.metadata else field.name.rpartition("_")[2].upper()
    return field.metadata.get("metavar", {int: "N", float: "X"}.get(kind.plain, word))


def _positional(action: argparse.Action) -> str:
    return f"{action.metavar} ..." if action.nargs in ("*", "+") else str(action.metavar)


def help_of(field: Field[Any]) -> str:
    """Returns the help of a field: what it means, then its choices and its default.

    The text and the default share a line where they fit; % is doubled for argparse's formatting.
    """
    text, default, choices = field.metadata.get("help", ""), _default(field), choices_of(field)
    if choices is None:
        line = f"{text} (default: {default})"
        lines = [line] if len(line) <= HELP_WIDTH else [text, f"default: {default}"]
    else:
        marked = [f"{name} (default)" if name == field.default else str(name) for name in choices]
        listed = ", ".join(marked)
        lines = [text, listed if field.default in choices else f"{listed}; default: {default}"]
    return "\n".join(lines).strip().replace("%", "%%")


def _default(field: Field[Any]) -> str:
    """Says the default of a field."""
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    if isinstance(field.default, tuple):
        return " ".join(map(str, field.default))
    return field.metadata.get("unset", "none") if field.default is None else str(field.default)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Lays out help in 100 columns, with a line break in a help text where the text has one."""

    def __init__(self, prog: str) -> None:
        width = min(_COLUMNS, shutil.get_terminal_size((_COLUMNS, 24)).columns)
        super().__init__(prog, max_help_position=_COLUMNS - HELP_WIDTH, width=width)

    def _split_lines(self, text: str, width: int) -> list[str]:
        wrapped = (textwrap.wrap(line, width, break_on_hyphens=False) for line in text.splitlines())
        return list(chain.from_iterable(wrapped))

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == "+":
            return f"{action.metavar or default_metavar} ..."  # argparse: X [X ...]
        return super()._format_args(action, default_metavar)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return action.option_strings[0].replace("--", "--[no-]", 1)  # not a line for each
        return super()._format_action_invocation(action)
