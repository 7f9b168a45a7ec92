"""Checks the numbers that environments are made with."""

import math
from numbers import Integral, Real

from pgprune.errors import PruningError

MOST_MASKS = 2**16
"""Masks of a step, at most: far more than a run evaluates in all."""


def check_arguments(num_envs: int, horizon: int, seed: int, budget_penalty: float) -> None:
    """Checks the masks of a step, the steps of an episode, the seed and the weight of the excess.

    Raises:
        PruningError: one is no number, or outside its range.
    """
    ranges = {"num_envs": (num_envs, 1, MOST_MASKS), "horizon": (horizon, 1, 2**31 - 1)}
    for name, (value, least, most) in (ranges | {"seed": (seed, 0, 2**64 - 1)}).items():
        if not isinstance(value, Integral) or not least <= value <= most:
            raise PruningError(f"{name} {value!r} is not a whole number from {least} to {most:,}")
    if not isinstance(budget_penalty, Real) or not 0 <= budget_penalty < math.inf:
        raise PruningError(
            f"budget_penalty {budget_penalty!r} must be zero (the paper's reward) or positive"
        )
