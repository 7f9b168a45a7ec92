"""Layers that a metric keeps whole, and the rounding of its scores around them."""

import math

import torch
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.masking.budget import Budget
from pgprune.masking.units import PruningUnits


def protected_units(budget: Budget, first: int, last: int) -> Tensor:
    """The units of the first and the last layers, (n,) bool.

    With a scope of ``local`` or ``uniform`` every layer keeps its share, so no layer can keep all
    of it, and nothing is protected.

    Args:
        budget: that the protected units must fit into.
        first: how many layers from the first.
        last: how many layers from the last.

    Raises:
        PruningError: the budget is less than what is protected.
    """
    units = budget.units
    if budget.scope != "global":
        return torch.zeros(units.n, dtype=torch.bool)
    protected = (units.layer < first) | (units.layer >= units.layers - last)
    for pool in budget.pools:
        cost = int(pool.cost[protected[pool.members]].sum())
        if cost > pool.capacity:
            most = math.floor(1e4 * (1 - cost / int(pool.cost.sum()))) / 1e4
            raise PruningError(
                f"prune rate {budget.prune_rate} is more than there is between the first {first} "
                f"and the last {last} of {units.layers} layers, which are kept whole; choose a "
                f"rate of at most {most:g}, or protect fewer layers"
            )
    return protected


def outer_layers(units: PruningUnits) -> tuple[int, int]:
    """How many layers LLM-Pruner and Shortened LLaMA keep whole at both ends: L/8 and L/16.

    These are 4 and 2 of 32; where they are no whole numbers the nearest, halves up.
    """
    return (units.layers + 4) // 8, (units.layers + 8) // 16


def round_around(budget: Budget, scores: Tensor, protected: Tensor) -> Tensor:
    """The budget's mask of scores (n,) that keeps all protected units (n,): (n,) uint8."""
    return budget.round(scores.masked_fill(protected, math.inf))


def ranks(units: PruningUnits, scores: Tensor) -> Tensor:
    """The rank of each score in its (layer, kind) group as a share, (n,) -> (n,) in (0, 1].

    The best of a group has 1. Rounding ranks prunes every group alike, as methods do that rank
    within a layer only; ties go by index.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(units.group[order], stable=True)]  # group by group, best first
    sizes = torch.bincount(units.group)
    group = units.group[order]
    place = torch.arange(units.n) - (sizes.cumsum(0) - sizes)[group]  # 0 for the best
    shares = torch.empty(units.n, dtype=torch.float64)
    shares[order] = 1 - place / sizes[group].double()
    return shares
