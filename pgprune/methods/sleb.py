"""SLEB: remove the layer that is missed least, look again, and so on."""

import torch
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.masking.budget import Budget
from pgprune.masking.problem import Problem
from pgprune.methods.base import MethodConfig, Pruned, method
from pgprune.methods.greedy import losses_without
from pgprune.metrics.base import DEPTH
from pgprune.metrics.importance import protected_units


@method("sleb", DEPTH)
def sleb(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Greedy removal of layers: in each round the one without which the loss is least.

    All the calibration windows are read for every layer that is left, in every round. The first
    and the last ``barrier`` layers are never removed. With blocks, attention and MLP blocks are
    removed one by one, each kind as far as the budget wants.

    Source: Song et al. 2024 (jiwonsong-dev/SLEB), with barriers of 1.

    Args:
        problem: the frozen model, whose units must be layers or blocks, and the budget.
        windows: calibration token ids, (N, T).
        seed: unused; the method is deterministic.
        config: ``barrier``.

    Returns:
        The mask, and in the notes the units in the order of removal and the loss after each.

    Raises:
        PruningError: the barriers leave nothing to remove, or less than the budget wants.
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
    # Where costs differ, what went early may fit again: the later it went, the sooner it returns.
    order = torch.full((units.n,), float(len(removed)), dtype=torch.float64)
    order[removed] = torch.arange(len(removed), dtype=torch.float64)
    return Pruned(budget.round(order), notes={"removed": removed, "losses": losses})


def _removable(budget: Budget, mask: Tensor, guarded: Tensor) -> Tensor:
    """Units that are kept and not guarded, in pools that keep more than they may: (candidates,)."""
    over = torch.zeros_like(guarded)
    for pool in budget.pools:
        over[pool.members] = int(pool.cost[mask[pool.members].bool()].sum()) > pool.capacity
    return torch.nonzero(over & mask.bool() & ~guarded).flatten()
