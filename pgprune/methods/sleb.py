"""SLEB: removes layers one by one, each time the one without which the loss is least."""

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem
from pgprune.errors import PruningError
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.metrics.base import DEPTH
from pgprune.metrics.importance import protected_units
from pgprune.metrics.layerwise_ppl import losses_without


@method("sleb", DEPTH)
def sleb(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Removes layers greedily: in each round the one without which the loss is least.

    All the calibration windows are read for every layer that is left, in every round. The first
    and the last ``barrier`` layers are never removed. With blocks, attention and MLP blocks are
    removed one by one, each kind until the budget is met.

    Source: Song et al. 2024 (jiwonsong-dev/SLEB), with barriers of 1.

    Options: ``barrier``.

    Returns:
        The mask, and in the notes the units in the order of removal and the loss after each.

    Raises:
        PruningError: the barriers leave nothing to remove, or less than the budget needs.
    """
    units, budget = problem.units, problem.budget
    if 2 * config.barrier >= units.layers:
        raise PruningError(
            f"barrier {config.barrier} at both ends leaves nothing of {units.layers} layers to "
            "remove; choose a smaller one"
        )
    guarded = protected_units(budget, config.barrier, config.barrier)
    mask, removed, losses = units.ones(), [], []
    while len(candidates := _removable(budget, mask, guarded)):
        loss = losses_without(problem.lm, mask, [unit[None] for unit in candidates], windows)
        best = int(loss.argmin())
        removed.append(int(candidates[best]))
        losses.append(float(loss[best]))
        mask[removed[-1]] = 0
    # Where costs differ, a unit removed early may fit again after a large one was removed; units
    # return in reverse order of removal.
    order = torch.full((units.n,), float(len(removed)), dtype=torch.float64)
    order[removed] = torch.arange(len(removed), dtype=torch.float64)
    return Pruned(budget.round(order), notes={"removed": removed, "losses": losses})


def _removable(budget: Budget, mask: Tensor, guarded: Tensor) -> Tensor:
    """Finds kept, unguarded units of what is over its capacity: (candidates,)."""
    over = torch.full_like(guarded, not budget.allows(mask))
    for pool in budget.pools:
        over[pool.members] |= int(pool.cost[mask[pool.members].bool()].sum()) > pool.capacity
    return torch.nonzero(over & mask.bool() & ~guarded).flatten()
