"""One level of each group: within the capacity, and near the best."""

from itertools import product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgprune.agents.levels.knapsack import cheapest

CONVEX = st.lists(st.floats(0.01, 1), min_size=3, max_size=3)


def levels(falls: list[float]) -> torch.Tensor:
    """Values that rise by more from level to level, as errors do when more is pruned."""
    return torch.tensor([0.0, *sorted(falls)], dtype=torch.float64).cumsum(0)


@given(st.lists(CONVEX, min_size=1, max_size=4), st.integers(0, 60))
def test_near_the_best_of_all_choices(groups, capacity):
    values = [levels(falls) for falls in groups]
    costs = [torch.tensor([12, 8, 4, 0]) + i for i in range(len(values))]
    choice = cheapest(values, costs, capacity)
    total = sum(int(cost[level]) for cost, level in zip(costs, choice, strict=True))
    least = sum(int(cost.min()) for cost in costs)
    if capacity < least:
        assert choice == [3] * len(values)
        return
    assert total <= capacity
    found = sum(float(value[level]) for value, level in zip(values, choice, strict=True))
    best = min(
        sum(float(value[level]) for value, level in zip(values, other, strict=True))
        for other in product(range(4), repeat=len(values))
        if sum(int(cost[level]) for cost, level in zip(costs, other, strict=True)) <= capacity
    )
    # What does not fit is less than a step of one group.
    assert found - best <= max(float(value.diff().max()) for value in values) + 1e-12


def test_unknown_levels_are_not_chosen():
    unknown = torch.inf
    values = [torch.tensor([0.0, 1.0, unknown]), torch.tensor([0.0, unknown, unknown])]
    costs = [torch.tensor([2, 1, 0])] * 2
    assert cheapest(values, costs, 3) == [1, 0]
    assert cheapest(values, costs, 4) == [0, 0]


def test_a_capacity_that_is_left_is_used():
    values = [torch.tensor([0.0, 0.1]), torch.tensor([0.0, 5.0])]
    costs = [torch.tensor([10, 0]), torch.tensor([10, 0])]
    assert cheapest(values, costs, 15) == [1, 0]


@settings(max_examples=20)
@given(st.lists(CONVEX, min_size=1, max_size=3), st.integers(0, 40), st.integers(0, 20))
def test_near_the_best_of_all_choices_within_two_capacities(groups, first, second):
    values = [levels(falls) for falls in groups]
    costs = [torch.tensor([[12, 8, 4, 0], [3 * i, 2 * i, i, 0]]) for i in range(len(values))]
    capacities = torch.tensor([first, second])
    choice = cheapest(values, costs, capacities)

    def total(choice):
        return torch.stack([c[:, level] for c, level in zip(costs, choice, strict=True)]).sum(0)

    assert bool((total(choice) <= capacities).all())
    found = sum(float(value[level]) for value, level in zip(values, choice, strict=True))
    best = min(
        sum(float(value[level]) for value, level in zip(values, other, strict=True))
        for other in product(range(4), repeat=len(values))
        if bool((total(other) <= capacities).all())
    )
    # What does not fit is less than a step of one group for each capacity.
    assert found - best <= 2 * max(float(value.diff().max()) for value in values) + 1e-12
