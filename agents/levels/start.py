"""Choices of levels that a search may start from."""

from collections.abc import Callable

import torch
from torch import Tensor

from pgprune.agents.levels.knapsack import cheapest
from pgprune.budget.budget import Budget
from pgprune.budget.level_grid import grid, groups_of
from pgprune.repair.levels import Levels


def starts(levels: Levels, budget: Budget) -> Tensor:
    """Returns choices within the budget, from equal shares to shares by the levels' errors.

    Errors of a layer's output do not say what they do to the model's, and squares of them keep
    layers closer to equal shares; which choice is the best depends on the model.

    Returns:
        Equal shares; the least sum of errors; that of squared errors; and the middle between the
        first two: (4, groups) int64.
    """
    _, equal = grid(budget)
    errors = [group.errors.clamp(min=0) for group in levels.groups]
    by_error = best(levels, budget, lambda group: errors[group])
    by_square = best(levels, budget, lambda group: errors[group].square())
    aims = [
        (of_group.kept[first] + of_group.kept[second]) / 2
        for of_group, first, second in zip(levels.groups, equal, by_error, strict=True)
    ]
    middle = best(levels, budget, lambda g: (levels.groups[g].kept - aims[g]).double().square())
    return torch.stack([equal, by_error, by_square, middle])


def best(levels: Levels, budget: Budget, values: Callable[[int], Tensor]) -> Tensor:
    """Finds the choice with the least sum of values within the budget.

    Args:
        levels: to choose from.
        budget: limits what all groups together keep.
        values: of the levels of a group, by its index, (levels,) float64 each.

    Returns:
        The level of each group, (groups,) int64.
    """
    choice = torch.zeros(len(levels.groups), dtype=torch.int64)
    for pool in budget.pools:
        members = groups_of(budget, pool).tolist()
        costs = [levels.groups[g].kept * _unit_cost(budget, g) for g in members]
        found = cheapest([values(g) for g in members], costs, pool.capacity)
        choice[members] = torch.tensor(found)
    return choice


def _unit_cost(budget: Budget, group: int) -> int:
    return int(budget.cost[budget.units.groups[group].start])
