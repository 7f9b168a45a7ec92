"""Options that are lists of numbers, written as "1,8"."""

from pgprune.errors import PruningError


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
