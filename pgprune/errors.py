"""The one exception that pgprune raises on purpose."""


class PruningError(ValueError):
    """A user's mistake or an unmet need, said in one sentence."""
