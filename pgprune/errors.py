"""The exceptions that pgprune raises on purpose."""


class PruningError(ValueError):
    """A user's mistake or an unmet need, said in one sentence."""


class Setback(PruningError):
    """What ends a run that did nothing wrong: no memory, a lost process. It can go on later."""


def first_line(error: BaseException) -> str:
    """What an error of another library says first, to quote it within a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".: ")
