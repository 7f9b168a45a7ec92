"""What every mask keeps: of some groups, a number of units at least."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pgprune.budget.pool import Pool
from pgprune.budget.projection import shift
from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits


def best_of_groups(units: PruningUnits, scores: Tensor) -> Tensor | None:
    """Finds the best units of each group, as many as ``units.least``: (n,) -> (n,) bool, or None.

    None says that no group must keep any.
    """
    if not bool(units.least.any()):
        return None
    best = torch.zeros(units.n, dtype=torch.bool)
    for group, least in zip(units.groups, units.least.tolist(), strict=True):
        order = torch.argsort(scores[group.start : group.stop], descending=True, stable=True)
        best[group.start + order[:least]] = True
    return best


def most_shifts(units: PruningUnits, z: Tensor) -> Tensor | None:
    """Computes the shift at which each group is at its least: scores (n,) -> (n,), or None."""
    if not bool(units.least.any()):
        return None
    most = torch.full_like(z, math.inf)
    for group, least in zip(units.groups, units.least.tolist(), strict=True):
        if least:
            here = z[group.start : group.stop]
            base = here.min() - 1  # at which all are kept
            most[group.start : group.stop] = base + shift(here - base, None, least)
    return most


def check_least(units: PruningUnits, pools: Sequence[Pool], cost: Tensor, rate: float) -> None:
    """Refuses a budget that has no room for the experts that a token uses.

    Args:
        units: of the model.
        pools: of the budget.
        cost: of each unit in its pool, (n,) int64.
        rate: of the budget.

    Raises:
        PruningError: naming the largest rate.
    """
    least = units.least / units.sizes.clamp(min=1)  # (groups,)
    shares = least[units.group] * cost  # (n,) of what they cost
    needed = [math.ceil(float(shares[pool.members].sum()) - 1e-6) for pool in pools]
    room = [min(pool.capacity, math.floor(pool.share + 1e-9)) for pool in pools]
    if all(need <= has for need, has in zip(needed, room, strict=True)):
        return
    costs = [int(pool.cost.sum()) for pool in pools]
    worst = max(need / cost for need, cost in zip(needed, costs, strict=True))
    most = math.floor(1e4 * (1 - worst)) / 1e4
    raise PruningError(
        f"prune rate {rate} leaves fewer experts in a layer than the "
        f"{int(units.least.max())} that each token uses; choose a rate of at most {most:g}"
    )
