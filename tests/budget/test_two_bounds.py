"""Projection and rounding under two bounds, against reference solvers on small problems."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from helpers.tiny import toy_units
from pgprune.budget.bound import Bound
from pgprune.budget.budget import Budget
from pgprune.budget.targets import Target
from pgprune.masking.units import PruningUnits

few = settings(max_examples=20)  # each of them projects and rounds several times
UNITS = toy_units(layers=2, kv_heads=2, channels=4)  # 12 units: 4,096 masks
MASKS = torch.tensor(list(product((0, 1), repeat=UNITS.n)), dtype=torch.float64)
numbers = st.floats(0, 1, allow_subnormal=False) | st.sampled_from([0.0, 0.5, 1.0])
scores = st.lists(numbers, min_size=UNITS.n, max_size=UNITS.n).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def bound(units: PruningUnits, cost: torch.Tensor, share: float, fixed: int = 10) -> Bound:
    """A bound that leaves a share of what all units cost."""
    limit = fixed + int(share * int(cost.sum()))
    target = Target("parameters<=1", "parameters", limit)
    return Bound(target, cost, fixed, limit, lambda mask, added: fixed + int(mask @ cost))


def two_bounds(units: PruningUnits, dear: int, first: float, second: float) -> list[Bound]:
    """Parameters, and a memory in which kv groups are dearer by some."""
    heads = units.kind == units.kinds.index("heads")
    memory = 2 * units.cost + dear * heads * (1 + units.layer)  # layers differ
    return [bound(units, units.cost, first), bound(units, memory, second)]


budgets = st.builds(
    lambda dear, first, second, scope, kind: Budget.within(
        UNITS, two_bounds(UNITS, dear, first, second), kind, scope
    ),
    st.sampled_from([0, 5, 40]),
    st.sampled_from([0.55, 0.7, 0.9]),
    st.sampled_from([0.6, 0.75]),
    st.sampled_from(["global", "local"]),
    st.sampled_from(["per-kind", "parameters"]),
)


def rows(budget: Budget) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All that limits a mask, by the definition: costs (m, n), capacities and shares (m,)."""
    pools = budget.pools
    cost = torch.zeros(len(pools), UNITS.n, dtype=torch.float64)
    for row, pool in zip(cost, pools, strict=True):
        row[pool.members] = pool.cost.double()
    bounds = torch.stack([each.cost.double() for each in budget.bounds])
    limits = [float(each.limit - each.fixed) for each in budget.bounds]
    return (
        torch.cat([cost, bounds]),
        torch.tensor([*(float(pool.capacity) for pool in pools), *limits]).double(),
        torch.tensor([*(pool.share for pool in pools), *limits]).double(),
    )


@few
@given(budgets, scores)
def test_no_mask_is_over_a_bound_and_no_pruned_unit_would_still_fit(budget, values):
    mask, (cost, capacity, _) = budget.round(values).double(), rows(budget)
    assert budget.excess(mask[None]).tolist() == [0]
    assert bool((cost @ mask <= capacity).all())
    for unit in torch.nonzero(mask == 0).flatten():
        assert bool((cost @ mask + cost[:, unit] > capacity).any()), f"unit {unit} would fit"


@few
@given(budgets, scores)
def test_excess_is_above_zero_where_a_bound_is_exceeded(budget, values):
    masks = MASKS[torch.randint(len(MASKS), (50,), generator=torch.Generator().manual_seed(0))]
    cost, _, _ = rows(budget)
    bounds = cost[len(budget.pools) :]
    limits = torch.tensor([each.capacity for each in budget.bounds]).double()
    over = (masks @ bounds.T > limits).any(1)  # (50,)
    assert bool((budget.excess(masks)[over] > 0).all())


@few
@given(budgets, scores, scores)
def test_a_projection_is_feasible_and_nothing_feasible_is_nearer(budget, z, other):
    """Optimality straight from the programme: (z - s) W (x - s) <= 0 for each feasible x."""
    s, x, (cost, _, share) = budget.project(4 * z - 1), budget.project(other), rows(budget)
    for kept in (s, x):
        assert bool(((kept >= 0) & (kept <= 1)).all())
        assert bool((cost @ kept <= share * (1 + 1e-7)).all())
    assert float(((4 * z - 1 - s) * budget.cost * (x - s)).sum()) <= 1e-6 * float(budget.cost.sum())


@few
@given(scores)
def test_with_one_bound_a_projection_is_one_shift(z):
    one = Budget.within(UNITS, [bound(UNITS, UNITS.cost, 0.6)], "parameters")
    plain = Budget(UNITS, one.prune_rate, "parameters")
    torch.testing.assert_close(one.project(2 * z), plain.project(2 * z), rtol=0, atol=1e-6)


def best_by_enumeration(budget: Budget, z: torch.Tensor) -> float:
    """The largest sum of weighted scores of all masks that are allowed."""
    cost, capacity, _ = rows(budget)
    allowed = (MASKS @ cost.T <= capacity).all(1)
    return float((MASKS[allowed] @ (budget.cost * z)).max())


def best_by_milp(budget: Budget, z: torch.Tensor) -> float:
    cost, capacity, _ = rows(budget)
    solved = milp(
        -(budget.cost * z).numpy(),
        constraints=LinearConstraint(cost.numpy(), ub=capacity.numpy()),
        integrality=np.ones(len(z)),
        bounds=Bounds(0, 1),
    )
    return -float(solved.fun)


@few
@given(budgets, scores)
def test_the_reference_solvers_agree(budget, z):
    assert best_by_milp(budget, z) == pytest.approx(best_by_enumeration(budget, z), abs=1e-6)


@few
@given(budgets, scores)
def test_a_rounding_of_few_units_is_within_two_units_of_the_best(budget, z):
    """Greedy choices lose what does not fit in the end: never more than the dearest unit each."""
    value = float(budget.round(z).double() @ (budget.cost * z))
    assert value >= best_by_enumeration(budget, z) - 2 * float((budget.cost * z).max()) - 1e-9


def test_roundings_of_many_units_are_near_the_best():
    """With hundreds of units, what greedy choices lose is small: milp is the reference."""
    units = toy_units(layers=6, kv_heads=4, channels=40)
    generator = torch.Generator().manual_seed(0)
    for dear, first, second in product((40, 400), (0.5, 0.8), (0.65,)):
        budget = Budget.within(units, two_bounds(units, dear, first, second), "parameters")
        z = torch.rand(units.n, generator=generator, dtype=torch.float64)
        cost = torch.stack([each.cost.double() for each in budget.bounds])
        limits = torch.tensor([each.capacity for each in budget.bounds]).double()
        best = -milp(
            -(budget.cost * z).numpy(),
            constraints=LinearConstraint(cost.numpy(), ub=limits.numpy()),
            integrality=np.ones(units.n),
            bounds=Bounds(0, 1),
        ).fun
        value = float(budget.round(z).double() @ (budget.cost * z))
        assert value >= 0.985 * best, (dear, first, second, value / best)


def test_bounds_move_with_the_rate():
    budget = Budget.within(UNITS, two_bounds(UNITS, 5, 0.5, 0.6), "parameters")
    assert budget.with_rate(budget.prune_rate) is budget
    half = budget.with_rate(budget.prune_rate / 2)
    assert half.prune_rate == pytest.approx(budget.prune_rate / 2, abs=0.02)
    for loose, tight in zip(half.bounds, budget.bounds, strict=True):
        middle = (tight.total + tight.capacity) / 2
        assert loose.capacity == pytest.approx(middle, abs=1)
