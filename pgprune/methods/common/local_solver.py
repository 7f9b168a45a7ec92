"""Prunes layer by layer with a solver that chooses the units of one projection."""

from collections.abc import Callable

import torch
from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.masking.units import Group
from pgprune.methods.common.base import Pruned
from pgprune.repair.fit import choose_and_refit
from pgprune.repair.least_squares import LeastSquares

Select = Callable[[LeastSquares, int], Tensor]
"""Chooses how many units to keep: (least squares, number) -> kept, (units,) bool."""


def prune_locally(
    problem: Problem,
    windows: Tensor,
    select: Select,
    target: str = "projection",
    alternating: bool = False,
) -> Pruned:
    """Keeps the share of each kind in each layer, one projection after the other.

    Each projection is scored and refitted on the inputs that the layers pruned before it give.

    Args:
        problem: the frozen model, whose units must be heads, channels or both, and the budget.
        windows: calibration token ids, (N, T).
        select: chooses the units of one projection.
        target: of the refitted projections, as in ``refit_layers``.
        alternating: whether up projections of gated MLPs are refitted too.

    Returns:
        The mask, and the refitted weights.

    Raises:
        PruningError: the repair fails.
    """
    # Under local scope the number of units that a group keeps does not depend on the scores, so
    # rounding any scores gives it, with remainders and round_to handled by the budget.
    shares = problem.budget.local().round(torch.zeros(problem.units.n))

    def choose(squares: LeastSquares, group: Group) -> Tensor:
        return select(squares, int(shares[group.start : group.stop].sum()))

    mask, repair = choose_and_refit(problem.lm, windows, choose, target, alternating=alternating)
    return Pruned(mask, repair=repair)
