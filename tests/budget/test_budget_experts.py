"""Budgets of experts: every layer keeps as many as a token uses, exactly."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.tiny import toy_units
from pgprune import PruningError
from pgprune.budget.budget import BUDGETS, Budget
from pgprune.budget.problem import PruningConfig
from pgprune.masking.units import PruningUnits

SHAPE = replace(
    toy_units().shapes[0],
    channels=1,
    channel_cost=0,
    experts=6,
    experts_per_token=2,
    expert_cost=9,
    router_row_cost=4,
)
PLAIN = replace(SHAPE, experts=0, experts_per_token=0, expert_cost=0, router_row_cost=0)
UNITS = PruningUnits([SHAPE, PLAIN, SHAPE], "experts")
WITH_HEADS = PruningUnits([SHAPE, PLAIN, SHAPE], "heads+experts")


def budget_of(units: PruningUnits, rate: float, kind: str, scope: str) -> Budget:
    return Budget(units, rate, "per-kind" if scope == "uniform" else kind, scope)


budgets = st.builds(
    budget_of,
    st.sampled_from([UNITS, WITH_HEADS]),
    st.sampled_from([0.1, 0.25, 0.3, 1 / 3, 0.5]),
    st.sampled_from(BUDGETS),
    st.sampled_from(["global", "local", "uniform"]),
)
numbers = st.floats(-3, 3, allow_subnormal=False) | st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5])


@st.composite
def cases(draw, vectors: int = 1):
    budget = draw(budgets)
    n = budget.units.n
    lists = [draw(st.lists(numbers, min_size=n, max_size=n)) for _ in range(vectors)]
    return budget, *(torch.tensor(values, dtype=torch.float64) for values in lists)


@given(cases())
def test_a_mask_keeps_the_experts_of_a_token_and_no_more_than_the_budget(case):
    budget, z = case
    mask = budget.round(z)
    counts = budget.units.kept_counts(mask[None])[0]
    assert bool((counts >= budget.units.least).all())
    for pool in budget.pools:
        assert int(pool.cost[mask[pool.members].bool()].sum()) <= pool.capacity
    if budget.scope == "uniform":
        assert len({int(counts[g]) for g in range(len(counts)) if budget.units.least[g]}) == 1


@given(cases())
def test_only_what_a_layer_needs_is_kept_before_better_units(case):
    """Without the layers' least, a unit goes only if a better one took its place."""
    budget, z = case
    mask = budget.round(z)
    for pool in budget.pools:
        left = pool.capacity - int(pool.cost[mask[pool.members].bool()].sum())
        pruned = pool.members[mask[pool.members] == 0]
        assert bool((budget.cost[pruned] > left).all())


@given(cases(vectors=2))
def test_a_projection_is_feasible_and_nothing_feasible_is_nearer(case):
    budget, z, other = case
    s, x = budget.project(z), budget.project(other)
    assert bool(((s >= 0) & (s <= 1)).all())
    sums = torch.stack([s[group.start : group.stop].sum() for group in budget.units.groups])
    assert bool((sums >= budget.units.least - 1e-7).all())
    for pool in budget.pools:
        assert float(s[pool.members] @ pool.cost.double()) <= pool.share + 1e-6
    # Optimality straight from the programme: (z - s) C (x - s) <= 0 for each feasible x.
    assert float(((z - s) * budget.cost * (x - s)).sum()) <= 1e-6
    torch.testing.assert_close(budget.project(s), s, rtol=0, atol=1e-7)


@pytest.mark.parametrize("scope", ["uniform", "local", "global"])
def test_too_high_a_rate_is_refused_with_the_largest_one(scope):
    with pytest.raises(PruningError, match="than the 2 that each token uses; .* at most 0.6666"):
        Budget(UNITS, 0.7, scope=scope)
    assert Budget(UNITS, 0.6666, scope=scope)


def test_active_parameters_of_an_expert_are_its_row_of_the_router():
    budget = Budget(WITH_HEADS, 0.5, "active-parameters")
    heads, experts = WITH_HEADS.kind == 0, WITH_HEADS.kind == 1
    assert set(budget.cost[heads].tolist()) == {7}
    assert set(budget.cost[experts].tolist()) == {4}
    assert set(WITH_HEADS.cost[experts].tolist()) == {9}


def test_shares_of_a_layer_without_experts_are_whole():
    shares = UNITS.kept_shares(torch.zeros(1, UNITS.n, dtype=torch.uint8))
    assert shares.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("options", "scope"),
    [
        ({"granularity": "experts"}, "uniform"),
        ({"granularity": "heads+experts"}, "uniform"),
        ({"granularity": "experts", "scope": "global"}, "global"),
        ({"granularity": "experts", "budget": "parameters"}, "global"),
        ({}, "global"),
    ],
)
def test_layers_keep_equally_many_experts_by_default(options, scope):
    assert PruningConfig(**options).scope == scope
