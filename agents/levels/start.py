"""Choices of levels that a search may start from."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pgprune.agents.levels.knapsack import cheapest
from pgprune.budget.budget import Budget
from pgprune.budget.level_grid import groups_of, start_counts
from pgprune.budget.nested import NestedBudget
from pgprune.repair.levels import Levels


def starts(levels: Levels, budget: Budget) -> Tensor:
    """Returns choices within the budget, from equal shares to shares by the levels' errors.

    Errors of a layer's output do not say what they do to the model's, and squares of them keep
    layers closer to equal shares; which choice is the best depends on the model.

    Returns:
        Equal shares; the least sum of errors; that of squared errors; and the middle between the
        first two: (4, groups) int64.
    """
    counts = start_counts(budget)
    equal = nearest(levels, budget, counts)
    errors = [group.errors.clamp(min=0) for group in levels.groups]
    by_error = best(levels, budget, lambda group: errors[group])
    by_square = best(levels, budget, lambda group: errors[group].square())
    aims = [
        (of_group.kept[first] + of_group.kept[second]) / 2
        for of_group, first, second in zip(levels.groups, equal, by_error, strict=True)
    ]
    return torch.stack([equal, by_error, by_square, nearest(levels, budget, aims)])


def nearest(levels: Levels, budget: Budget, aims: Sequence[Tensor | float]) -> Tensor:
    """Finds the choice (groups,) that keeps numbers of units nearest to those aimed at.

    Distances are squared, and the choice is within the budget.
    """
    return best(levels, budget, lambda g: (levels.groups[g].kept - aims[g]).double().square())


def scaled(counts: Sequence[float], budget: Budget) -> list[float]:
    """Scales numbers of kept units (groups,) to a budget, by one factor in each of its pools."""
    aims = [0.0] * len(counts)
    for pool in budget.pools:
        members = groups_of(budget, pool).tolist()
        cost = sum(counts[group] * _unit_cost(budget, group) for group in members)
        for group in members:
            aims[group] = counts[group] * pool.capacity / max(cost, 1)
    return aims


def best(levels: Levels, budget: Budget, values: Callable[[int], Tensor]) -> Tensor:
    """Finds the choice with the least sum of values within the budget.

    Args:
        levels: to choose from.
        budget: limits what all groups together keep; a nested one also what each keeps.
        values: of the levels of a group, by its index, (levels,) float64 each.

    Returns:
        The level of each group, (groups,) int64.
    """
    groups = range(len(levels.groups))
    if budget.bounds:  # which groups of all pools share
        limits, starts = budget.limits, [group.start for group in budget.units.groups]
        rows = [levels.groups[g].kept * limits.cost[:, starts[g], None] for g in groups]
        of_all = [_allowed(levels, budget, g, values(g)) for g in groups]
        return torch.tensor(cheapest(of_all, rows, limits.capacity))
    choice = torch.zeros(len(groups), dtype=torch.int64)
    for pool in budget.pools:
        members = groups_of(budget, pool).tolist()
        costs = [levels.groups[g].kept * _unit_cost(budget, g) for g in members]
        of_members = [_allowed(levels, budget, g, values(g)) for g in members]
        choice[members] = torch.tensor(cheapest(of_members, costs, pool.capacity))
    return choice


def _allowed(levels: Levels, budget: Budget, group: int, values: Tensor) -> Tensor:
    """Makes values (levels,) infinite where a level keeps less than is asked for, or too much.

    That is more than a nested budget allows.
    """
    values = values.masked_fill(levels.groups[group].kept < budget.units.least[group], torch.inf)
    if not isinstance(budget, NestedBudget):
        return values
    return values.masked_fill(levels.groups[group].kept > budget.most[group], torch.inf)


def _unit_cost(budget: Budget, group: int) -> int:
    return int(budget.cost[budget.units.groups[group].start])
