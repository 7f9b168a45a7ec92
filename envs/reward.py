"""What masks are rewarded for: their loss as they are, or as they will be after a bias repair."""

from pgprune.errors import PruningError
from pgprune.fill import mean_fill
from pgprune.layer_mask import Fill
from pgprune.problem import Problem

REWARDS = ("plain", "repaired")

_WINDOWS = 128  # of calibration text for the means


def check_reward(reward: str, granularity: str) -> None:
    """Makes sure that masks over units of a granularity can be rewarded so.

    Raises:
        PruningError: an unknown reward, or units that a bias repair leaves as they are.
    """
    if reward not in REWARDS:
        raise PruningError(f"reward {reward!r} is unknown; choose one of {', '.join(REWARDS)}")
    if reward == "repaired" and granularity == "layers":
        raise PruningError(
            "reward repaired is about biases that make up for what is pruned, but a pruned layer "
            "has none; choose reward plain or a granularity other than layers"
        )


def reward_fill(problem: Problem, reward: str) -> Fill | None:
    """What pruned inputs are where rewards are computed.

    Args:
        problem: the frozen model and its calibration text, whose first 128 windows give the means
            of the inputs (all windows of a smaller finite set).
        reward: ``plain`` or ``repaired``.

    Returns:
        The means; None for zero.

    Raises:
        PruningError: too little calibration text, or activations that overflow.
    """
    if reward == "plain":
        return None
    return mean_fill(problem.lm, problem.stream.head(_WINDOWS))
