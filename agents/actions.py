"""Action spaces: masks, scores of units, or densities of layers."""

from collections.abc import Sequence

from pgprune.errors import PruningError

KINDS = ("mask", "density", "score")
MOST_SCORES = 10_000


def chosen_action(agent: str, possible: Sequence[str], action: str | None) -> str | None:
    """Returns the kind of action of an agent: one of ``KINDS``, None if it has no choice.

    Args:
        agent: its name.
        possible: the kinds that it can learn, the default first.
        action: the kind that was asked for; None takes the default.

    Raises:
        PruningError: it was asked for another kind than the possible ones.
    """
    if action in possible or action is None:
        return action or next(iter(possible), None)
    can = " or ".join(possible) or "what it always does; leave the option out"
    raise PruningError(f"action {action} does not fit agent {agent}, which acts in {can}")


def check_scores(action: str | None, units: int) -> None:
    """Refuses a score for each unit where there are too many to be searched or learned.

    Args:
        action: one of ``KINDS``, or None.
        units: how many there are.

    Raises:
        PruningError: more than ``MOST_SCORES``.
    """
    if action == "score" and units > MOST_SCORES:
        raise PruningError(
            f"action score means {units} dimensions here, more than the {MOST_SCORES} that it is "
            "meant for; choose --action density, or a coarser --granularity or --channel-block"
        )
