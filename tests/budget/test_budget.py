"""Invariant 3: `project` is the solution of its quadratic programme, `round` is what it says."""

import math
from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers.tiny import toy_units
from pgprune import PruningError
from pgprune.budget.budget import BUDGETS, Budget

UNITS = toy_units(layers=2, kv_heads=2, channels=4)
SCOPES = ("global", "local")  # tests/masking/test_rounding.py is about uniform and round_to
RATES = (0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7)

budgets = st.builds(
    Budget,
    st.just(UNITS),
    st.sampled_from(RATES),
    st.sampled_from(BUDGETS),
    st.sampled_from(SCOPES),
)
numbers = st.floats(-3, 3, allow_subnormal=False) | st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5])
scores = st.lists(numbers, min_size=UNITS.n, max_size=UNITS.n).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def pools(budget: Budget) -> list[tuple[list[int], list[int]]]:
    """Members and costs of each pool, by the definition."""
    units, pools = budget.units, {}
    for i in range(units.n):
        group = units.groups[units.group[i]]
        kind = group.kind if budget.kind == "per-kind" else "all"
        layer = group.layer if budget.scope == "local" else "all"
        pools.setdefault((kind, layer), []).append(i)
    weighted = "parameters" in budget.kind
    return [
        (pool, [int(units.cost[i]) if weighted else 1 for i in pool]) for pool in pools.values()
    ]


def keep(budget: Budget) -> Fraction:
    return 1 - Fraction(budget.prune_rate).limit_denominator(100)


def reference_shift(z: list[Fraction], cost: list[int], share: Fraction) -> Fraction:
    """The smallest v >= 0 with sum_i c_i clip(z_i - v, 0, 1) <= share, in exact arithmetic."""

    def kept(v: Fraction) -> Fraction:
        return sum(c * min(1, max(0, value - v)) for c, value in zip(cost, z, strict=True))

    if kept(Fraction(0)) <= share:
        return Fraction(0)
    breakpoints = sorted({Fraction(0), *z, *(value - 1 for value in z)})
    for low, high in zip(breakpoints, breakpoints[1:], strict=False):
        if kept(low) > share >= kept(high):  # linear in between
            return low + (high - low) * (kept(low) - share) / (kept(low) - kept(high))
    raise AssertionError("a share above zero is reached before the last breakpoint")


@given(budgets, scores)
def test_project_equals_the_exact_solution(budget, z):
    expected = torch.empty_like(z)
    for members, cost in pools(budget):
        exact = [Fraction(float(z[i])) for i in members]
        shift = reference_shift(exact, cost, keep(budget) * sum(cost))
        expected[members] = torch.tensor(
            [float(min(1, max(0, value - shift))) for value in exact], dtype=torch.float64
        )
    torch.testing.assert_close(budget.project(z), expected, rtol=0, atol=1e-9)


@given(budgets, scores, scores)
def test_nothing_feasible_is_nearer_than_the_projection(budget, z, other):
    """Optimality straight from the programme: (z - s) C (x - s) <= 0 for each feasible x."""
    s, x = budget.project(z), budget.project(other)
    assert float(((z - s) * budget.cost * (x - s)).sum()) <= 1e-7


@given(budgets, scores)
def test_a_projection_is_feasible_and_stays_where_it_is(budget, z):
    s = budget.project(z)
    assert s.dtype == torch.float64
    assert bool(((s >= 0) & (s <= 1)).all())
    for members, cost in pools(budget):
        assert float(s[members] @ torch.tensor(cost).double()) <= keep(budget) * sum(cost) + 1e-7
    torch.testing.assert_close(budget.project(s), s, rtol=0, atol=1e-9)


def test_project_leaves_what_is_feasible():
    z = torch.full((UNITS.n,), 0.3, dtype=torch.float64)
    assert torch.equal(Budget(UNITS, 0.5).project(z), z)


def test_project_of_many_units_is_exact():
    units = toy_units(layers=1, kv_heads=4, channels=20_000, granularity="channels")
    z = torch.rand(units.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    assert float(Budget(units, 0.4).project(z).sum()) == pytest.approx(12_000, abs=1e-7)


def reference_capacities(budget: Budget) -> list[int]:
    """Computes what each pool may keep; tied largest remainders go to the first layers."""
    shares = [keep(budget) * sum(cost) for _, cost in pools(budget)]
    floors = [share.numerator // share.denominator for share in shares]
    if "parameters" in budget.kind:
        return floors
    kinds = [UNITS.groups[UNITS.group[members[0]]].kind for members, _ in pools(budget)]
    for kind in set(kinds):
        same = [i for i in range(len(shares)) if kinds[i] == kind]
        left = int(sum(shares[i] for i in same)) - sum(floors[i] for i in same)
        for i in sorted(same, key=lambda i: (floors[i] - shares[i], i))[:left]:
            floors[i] += 1
    return floors


@given(budgets, scores)
def test_round_keeps_the_best_while_they_fit(budget, values):
    expected = [0] * UNITS.n
    for (members, cost), capacity in zip(pools(budget), reference_capacities(budget), strict=True):
        for c, i in sorted(zip(cost, members, strict=True), key=lambda u: (-values[u[1]], u[1])):
            if c <= capacity:
                expected[i], capacity = 1, capacity - c
    assert budget.round(values).tolist() == expected


@given(budgets, scores)
def test_round_never_exceeds_the_budget_and_no_pruned_unit_would_still_fit(budget, values):
    mask = budget.round(values)
    assert mask.dtype == torch.uint8
    assert budget.excess(mask[None]).tolist() == [0]
    for (members, cost), capacity in zip(pools(budget), reference_capacities(budget), strict=True):
        kept = sum(c for c, i in zip(cost, members, strict=True) if mask[i])
        assert kept <= capacity
        assert all(kept + c > capacity for c, i in zip(cost, members, strict=True) if not mask[i])
        if len(set(cost)) == 1:
            assert kept == capacity // cost[0] * cost[0]


@given(st.sampled_from(RATES), scores)
def test_where_costs_are_equal_no_subset_scores_higher(rate, values):
    mask = Budget(UNITS, rate, "units").round(values)
    best = max(sum(subset) for subset in combinations(values.tolist(), int(mask.sum())))
    assert float(values[mask.bool()].sum()) == pytest.approx(best)


def test_ties_go_by_index():
    mask = Budget(toy_units(layers=2, kv_heads=2, channels=2), 0.5).round(torch.zeros(8))
    assert mask.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_the_remainder_of_local_shares_goes_by_largest_remainder():
    """5 layers of 4 heads at 0.3 keep 14: 2.8 each, so four layers keep 3 and one keeps 2."""
    units = toy_units(layers=5, kv_heads=4, granularity="heads")
    mask = Budget(units, 0.3, scope="local").round(torch.arange(units.n))
    assert units.kept_shares(mask[None])[0].tolist() == [0.75, 0.75, 0.75, 0.75, 0.5]
    assert mask.view(5, 4).tolist() == [[0, 1, 1, 1]] * 4 + [[0, 0, 1, 1]]


def test_a_smaller_unit_fills_what_a_larger_leaves():
    """Capacity 10 of 20: the second kv group of 7 no longer fits, a channel of 3 does."""
    units = toy_units(layers=1, kv_heads=2, channels=2)
    mask = Budget(units, 0.5, "parameters").round(torch.tensor([4, 3, 2, 1]))
    assert mask.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("rate", [0.3, 0.1 + 0.2, 1 - 0.7])
def test_rates_are_meant_as_they_are_written(rate):
    """0.1 + 0.2 is above 0.3 in floating point; 14 of 20 heads stay all the same."""
    units = toy_units(layers=5, kv_heads=4, granularity="heads")
    assert int(Budget(units, rate).round(torch.rand(20)).sum()) == 14


@pytest.mark.parametrize("scores", [torch.zeros(3), torch.full((UNITS.n,), torch.nan)])
def test_only_numbers_for_all_units_are_rounded(scores):
    with pytest.raises(PruningError, match=f"must be {UNITS.n} numbers"):
        Budget(UNITS, 0.5).round(scores)


def test_kept_share_counts_what_the_budget_counts():
    units = toy_units(layers=1, kv_heads=2, channels=2)  # costs 7, 7, 3, 3
    masks = torch.tensor([[1, 0, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1]])
    assert Budget(units, 0.5).kept_share(masks).tolist() == [0.5, 1, 1]
    assert Budget(units, 0.5, "units").kept_share(masks).tolist() == [0.25, 0.75, 1]
    assert Budget(units, 0.5, "parameters").kept_share(masks).tolist() == [0.35, 0.65, 1]
    assert Budget(units, 0.5, "units").excess(masks).tolist() == [0, 0.25, 0.5]


@pytest.mark.parametrize("kind", BUDGETS)
def test_the_local_budget_of_a_metric_gives_every_kind_its_share_in_every_layer(kind):
    mask = Budget(UNITS, 0.5, kind).local().round(torch.arange(UNITS.n))
    assert UNITS.kept_shares(mask[None])[0].tolist() == [0.5] * len(UNITS.groups)


def test_another_rate_of_the_same_budget():
    budget = Budget(UNITS, 0.5, "units", "local").with_rate(0.25)
    assert (budget.prune_rate, budget.kind, budget.scope) == (0.25, "units", "local")


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan"), float("inf"), "0.4", None])
def test_rates_that_are_not_numbers_inside_0_and_1_are_refused(rate):
    with pytest.raises(PruningError, match=r"prune rate .* inside \(0, 1\)"):
        Budget(UNITS, rate)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("kind", "rate", "name"),
    [("per-kind", 0.8, "heads"), ("units", 0.95, "the model"), ("parameters", 0.96, "the model")],
)
def test_a_budget_that_leaves_nothing_is_refused(kind, rate, name, scope):
    with pytest.raises(PruningError, match=f"{rate} .* {name}; choose"):
        Budget(UNITS, rate, kind, scope)


@pytest.mark.parametrize(
    ("granularity", "options", "message"),
    [
        ("heads", {"kind": "heads"}, "budget 'heads' .* per-kind, units, parameters"),
        ("heads", {"scope": "layer"}, "scope 'layer' .* global, local, uniform"),
        ("layers", {"scope": "local"}, "scope local "),
    ],
)
def test_unknown_kinds_and_scopes_and_one_without_choice_are_refused(granularity, options, message):
    with pytest.raises(PruningError, match=message):
        Budget(toy_units(granularity=granularity), 0.5, **options)


@given(st.floats(0.01, 0.99), st.integers(1, 4), st.integers(1, 9))
def test_the_share_of_units_kept_is_off_by_less_than_a_unit(rate, kv_heads, channels):
    units = toy_units(kv_heads=kv_heads, channels=channels)
    assume((1 - rate) * min(kv_heads, channels) * 3 >= 1)
    budget = Budget(units, rate)
    for kind in range(2):
        size = int((units.kind == kind).sum())
        kept = int(budget.round(torch.zeros(units.n))[units.kind == kind].sum())
        assert 0 <= (1 - rate) * size - kept + 1e-6 < 1 + 1e-6


@pytest.mark.parametrize(("odd", "plain"), [(math.inf, 4.0), (-math.inf, -1.0), (1e18, 4.0)])
@given(budgets, scores)
def test_scores_beyond_all_others_are_projected_as_the_largest_or_smallest(odd, plain, budget, z):
    first, second = z.clone(), z.clone()
    first[0], second[0] = odd, plain
    projected = budget.project(first)
    torch.testing.assert_close(projected, budget.project(second), rtol=0, atol=1e-12)


@given(budgets, st.lists(st.floats(0, 1e300) | numbers, min_size=UNITS.n, max_size=UNITS.n))
def test_huge_scores_stay_within_the_budget_and_in_order(budget, values):
    z = torch.tensor(values, dtype=torch.float64)
    kept = budget.project(z)
    for pool in budget.pools:
        assert float(kept[pool.members] @ pool.cost.double()) <= pool.share * (1 + 1e-9)
        assert bool((kept[pool.members][z[pool.members].argsort()].diff() >= 0).all())


def test_scores_that_are_no_numbers_are_refused():
    budget = Budget(UNITS, 0.3)
    with pytest.raises(PruningError, match="with 1 not-a-number entries"):
        budget.project(torch.tensor([math.nan] + [0.5] * (UNITS.n - 1), dtype=torch.float64))
