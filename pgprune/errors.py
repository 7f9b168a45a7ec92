"""The exceptions that pgprune raises on purpose."""


class PruningError(ValueError):
    """A mistake in the input or an unmet requirement, said in one sentence."""


class ResourceError(PruningError):
    """Too little memory, or a lost process: the run itself is right and can be resumed."""


def first_line(error: BaseException) -> str:
    """What an error of another library says first, to quote it within a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".: ")
