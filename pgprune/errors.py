"""The exceptions that pgprune raises for its users."""

from collections.abc import Collection


class PruningError(ValueError):
    """A mistake in the input or an unmet requirement, said in one sentence."""


class ResourceError(PruningError):
    """Too little memory, or a lost process: the run itself is right and can be resumed."""


def first_line(error: BaseException) -> str:
    """Returns the first line of another library's error, to quote it within a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".: ")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises a PruningError if the value of an option is not one of its choices."""
    if value not in choices:
        raise PruningError(f"{name} {value!r} is unknown; choose one of {', '.join(choices)}")
