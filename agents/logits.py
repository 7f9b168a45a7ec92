"""Logits of a policy over masks, kept within bounds and on the budget."""

import torch
from torch import Tensor

from pgprune.budget.budget import Budget

BOUND = 5.0  # of a logit: every unit is kept, and pruned, in at least 0.7 % of the masks
_BISECTIONS = 40  # halve an interval of width 20 to 2e-11


def logits_of(probabilities: Tensor, budget: Budget) -> Tensor:
    """Converts keep probabilities (n,) to bounded logits on the budget, (n,) float64."""
    return on_budget(probabilities.double().logit().clamp(-BOUND, BOUND), budget)


def on_budget(logits: Tensor, budget: Budget) -> Tensor:
    """Shifts all logits of a pool by one number, so that the kept share meets the budget.

    ``Budget.project`` does the same with probabilities; a shift of logits keeps the odds between
    units, and leaves no probability at 0 or 1, where a policy gradient ends.

    Args:
        logits: (n,) on the CPU.
        budget: gives the shares; one that no logits within the bounds meet is approached.

    Returns:
        Logits within ``-BOUND`` and ``BOUND``, (n,) float64.
    """
    shifted = torch.empty_like(logits, dtype=torch.float64)
    for pool in budget.pools:
        shifted[pool.members] = _within(logits[pool.members].double(), pool.cost, pool.share)
    for bound in budget.bounds:
        if float(bound.cost.double() @ shifted.sigmoid()) > bound.capacity:
            shifted = _within(shifted, bound.cost, bound.capacity)
    return shifted


def _within(logits: Tensor, cost: Tensor, share: float) -> Tensor:
    """Shifts logits (p,) by the smallest number with which their cost is within a share."""
    cost = cost.double()
    # Bisection on v: sum_i c_i sigmoid(clip(z_i - v)) falls in v and must not exceed the share.
    low, high = logits.min() - BOUND, logits.max() + BOUND  # of all at +BOUND and at -BOUND
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        over = cost @ (logits - middle).clamp(-BOUND, BOUND).sigmoid() > share
        low, high = (middle, high) if over else (low, middle)
    # ``high`` is the end of the interval that does not exceed the share.
    return (logits - high).clamp(-BOUND, BOUND)
