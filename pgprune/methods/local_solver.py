"""What layer-wise solvers share: each layer's share, and the run through the layers."""

from collections.abc import Callable

import torch
from torch import Tensor

from pgprune.masking.problem import Problem
from pgprune.masking.units import Group
from pgprune.methods.base import Pruned
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
    """Keeps each kind's share in each layer, projection by projection on what is pruned already.

    Args:
        problem: the frozen model, whose units must be heads, channels or both, and the budget.
        windows: calibration token ids, (N, T).
        select: chooses the units of one projection.
        target: what refitted projections should give, as in ``refit_layers``.
        alternating: whether up projections of gated MLPs are refitted too.

    Returns:
        The mask, and the refitted weights.

    Raises:
        PruningError: the repair fails.
    """
    # Under local scope the number that each group keeps does not depend on the scores.
    shares = problem.budget.local().round(torch.zeros(problem.units.n))

    def choose(squares: LeastSquares, group: Group) -> Tensor:
        return select(squares, int(shares[group.start : group.stop].sum()))

    mask, repair = choose_and_refit(problem.lm, windows, choose, target, alternating=alternating)
    return Pruned(mask, repair=repair)
