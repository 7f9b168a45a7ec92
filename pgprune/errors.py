"""The exceptions that pgprune raises for its users."""

import re
from collections.abc import Collection

_LONG = re.compile(r"\S{1000,}")  # no path is as long, but a number can be
_QUOTED = 300  # characters of another library's error: some quote a whole file


class PruningError(ValueError):
    """A mistake in the input or an unmet requirement, said in one sentence."""

    def __str__(self) -> str:
        """Returns the sentence, in which what is too long for a line is cut."""
        return _LONG.sub(lambda found: f"{found[0][:_QUOTED]}...", super().__str__())


class ResourceError(PruningError):
    """Too little memory, or a lost process: the run itself is right and can be resumed."""


def printable(text: str, kept: str = "") -> str:
    """Replaces what could steer a terminal or hide in a line, such as escape sequences.

    Every name that others have chosen (of a file, a column, a model) is shown through it.

    Args:
        text: of any origin.
        kept: characters to keep all the same, such as a line break.
    """
    return "".join(c if c.isprintable() or c in kept else "\ufffd" for c in text)


def first_line(error: BaseException) -> str:
    """Returns the first line of another library's error, to quote it within a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0].rstrip(".: ")[:_QUOTED])


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises a PruningError if the value of an option is not one of its choices."""
    if value not in choices:
        raise PruningError(f"{name} {value!r} is unknown; choose one of {', '.join(choices)}")
