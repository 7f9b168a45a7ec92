"""Chooses one level for each group: the least sum of values within one or several capacities."""

from collections.abc import Sequence

import torch
from torch import Tensor

_BISECTIONS = 60
_ROUNDS = 8  # of the weights of several capacities against each other


def cheapest(
    values: Sequence[Tensor], costs: Sequence[Tensor], capacity: int | Tensor
) -> list[int]:
    """Solves a multiple-choice knapsack: which level of each group, one of each.

    The sum of values is as low as a Lagrange multiplier on the costs finds it, which is exact but
    for the levels that are off the convex hull of a group's values. What the capacity then leaves
    goes to the levels with the largest fall of the value for each unit of cost. Several capacities
    have a multiplier each: one price for all, times weights that fall where a capacity is not used
    up (a surrogate constraint, Glover 1975). The best choice of some rounds is taken.

    Args:
        values: of the levels of each group, (levels,) each; infinite for a level not to choose.
        costs: of the levels, (levels,) int64 each; or (m, levels).
        capacity: of the costs' sum; or (m,) int64.

    Returns:
        The index of a level of each group. Where nothing fits, the levels of least cost.
    """
    rows = [cost.view(-1, cost.shape[-1]) for cost in costs]  # (m, levels) each
    limits = torch.as_tensor(capacity).view(-1)  # (m,)
    several = len(limits) > 1
    weights = 1 / limits.double().clamp(min=1)
    best: list[int] = []
    for _ in range(_ROUNDS if several else 1):
        priced = [weights @ cost.double() if several else cost[0] for cost in rows]
        choice = _priced_choice(values, rows, priced, limits)
        if not best or _value(values, choice) < _value(values, best) or _over(rows, best, limits):
            best = choice
        used = _total(rows, choice) / limits.double().clamp(min=1)
        weights = weights * (used / used.max().clamp(min=1e-9)).clamp(min=0.1) ** 4
    return best if _over(rows, best, limits) else _filled(values, rows, best, limits)


def _priced_choice(
    values: Sequence[Tensor], rows: Sequence[Tensor], priced: Sequence[Tensor], limits: Tensor
) -> list[int]:
    """Finds the smallest price of the costs at which the choice of least value and cost fits."""

    def choose(price: float) -> list[int]:
        return [int((v + price * c).argmin()) for v, c in zip(values, priced, strict=True)]

    low, high = 0.0, 1.0
    while _over(rows, choose(high), limits):
        low, high = high, 2 * high
        if high > 1e30:
            possible = zip(values, priced, strict=True)
            return [int(c.where(v.isfinite(), c.max() + 1).argmin()) for v, c in possible]
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _over(rows, choose(middle), limits) else (low, middle)
    return choose(high)


def _filled(
    values: Sequence[Tensor], rows: Sequence[Tensor], choice: list[int], limits: Tensor
) -> list[int]:
    """Spends what the capacities leave on the largest falls of the value."""
    while True:
        left = limits - _total(rows, choice)
        falls = [
            _best_fall(v, c, level, left, limits)
            for v, c, level in zip(values, rows, choice, strict=True)
        ]
        group = max(range(len(falls)), key=lambda g: falls[g][0])
        if falls[group][0] <= 0:
            return choice
        choice[group] = falls[group][1]


def _best_fall(
    values: Tensor, costs: Tensor, level: int, left: Tensor, limits: Tensor
) -> tuple[float, int]:
    """Finds the level that fits with the largest fall of the value for each unit of cost."""
    more = costs - costs[:, level, None]  # (m, levels)
    fits = (more > 0).any(0) & (more <= left[:, None]).all(0) & values.isfinite()
    if len(limits) > 1:
        spent = (more / limits[:, None].clamp(min=1)).amax(0).clamp(min=1e-12)
    else:
        spent = more[0].clamp(min=1)
    falls = torch.where(fits, (values[level] - values) / spent, -torch.inf)
    best = int(falls.argmax())
    return float(falls[best]), best


def _total(rows: Sequence[Tensor], choice: list[int]) -> Tensor:
    """Adds up what a choice costs, (m,) int64."""
    return torch.stack([c[:, level] for c, level in zip(rows, choice, strict=True)]).sum(0)


def _over(rows: Sequence[Tensor], choice: list[int], limits: Tensor) -> bool:
    return bool((_total(rows, choice) > limits).any())


def _value(values: Sequence[Tensor], choice: list[int]) -> float:
    return sum(float(v[level]) for v, level in zip(values, choice, strict=True))
