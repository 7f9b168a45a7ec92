"""What agents act in where they have a choice: masks, scores of units, or densities of layers."""

from pgprune.errors import PruningError

ON_POLICY = ("ppo", "a2c", "trpo")  # by Stable-Baselines3
OFF_POLICY = ("sac", "td3")

ACTIONS: dict[str, tuple[str, ...]] = {
    "cma-es": ("density", "score"),
    **dict.fromkeys(ON_POLICY, ("mask", "density", "score")),
    **dict.fromkeys(OFF_POLICY, ("density", "score")),
}
"""What each agent that has a choice can act in, the first by default."""

KINDS = ("mask", "density", "score")
MOST_SCORES = 10_000


def chosen_action(agent: str, action: str | None) -> str | None:
    """What an agent acts in.

    Args:
        agent: its name.
        action: one of ``KINDS``, or None for the agent's own.

    Returns:
        One of ``KINDS``; None if it has no choice.

    Raises:
        PruningError: it cannot act as it is asked to.
    """
    possible = ACTIONS.get(agent, ())
    if action in possible or action is None:
        return action or next(iter(possible), None)
    can = " or ".join(possible) or "what it always does; leave the option out"
    raise PruningError(f"action {action} does not fit agent {agent}, which acts in {can}")


def check_scores(action: str, units: int) -> None:
    """Refuses a score for each unit where there are too many to be searched or learned.

    Args:
        action: one of ``KINDS``.
        units: how many there are.

    Raises:
        PruningError: more than ``MOST_SCORES``.
    """
    if action == "score" and units > MOST_SCORES:
        raise PruningError(
            f"action score means {units} dimensions here, more than the {MOST_SCORES} that it is "
            "meant for; choose --action density, or a coarser --granularity or --channel-block"
        )
