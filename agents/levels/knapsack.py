"""Chooses one level for each group: the least sum of values within a capacity."""

from collections.abc import Sequence

import torch
from torch import Tensor

_BISECTIONS = 60


def cheapest(values: Sequence[Tensor], costs: Sequence[Tensor], capacity: int) -> list[int]:
    """Solves a multiple-choice knapsack: which level of each group, one of each.

    The sum of values is as low as a Lagrange multiplier on the costs finds it, which is exact but
    for the levels that are off the convex hull of a group's values. What the capacity then leaves
    goes to the levels with the largest fall of the value for each unit of cost.

    Args:
        values: of the levels of each group, (levels,) each; infinite for a level not to choose.
        costs: of the levels, (levels,) int64 each.
        capacity: of the costs' sum.

    Returns:
        The index of a level of each group. Where nothing fits, the levels of least cost.
    """

    def choose(price: float) -> list[int]:
        return [int((v + price * c).argmin()) for v, c in zip(values, costs, strict=True)]

    def cost(choice: list[int]) -> int:
        return sum(int(c[level]) for c, level in zip(costs, choice, strict=True))

    least = [
        int(c.where(v.isfinite(), c.max() + 1).argmin()) for v, c in zip(values, costs, strict=True)
    ]
    low, high = 0.0, 1.0
    while cost(choose(high)) > capacity:
        low, high = high, 2 * high
        if high > 1e30:
            return least
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(choose(middle)) > capacity else (low, middle)
    choice = choose(high)
    while True:
        left = capacity - cost(choice)
        falls = [
            _best_fall(v, c, level, left) for v, c, level in zip(values, costs, choice, strict=True)
        ]
        group = max(range(len(falls)), key=lambda g: falls[g][0])
        if falls[group][0] <= 0:
            return choice
        choice[group] = falls[group][1]


def _best_fall(values: Tensor, costs: Tensor, level: int, left: int) -> tuple[float, int]:
    """Finds the level that fits with the largest fall of the value for each unit of cost."""
    more = costs - costs[level]
    fits = (more > 0) & (more <= left) & values.isfinite()
    falls = torch.where(fits, (values[level] - values) / more.clamp(min=1), -torch.inf)
    best = int(falls.argmax())
    return float(falls[best]), best
