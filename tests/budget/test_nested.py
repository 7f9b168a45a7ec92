"""A budget within a mask: what is kept, and what probabilities may be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.tiny import toy_units
from pgprune.budget.budget import Budget
from pgprune.budget.nested import NestedBudget

UNITS = toy_units(layers=3, channels=12)
KINDS = ["per-kind", "units", "parameters"]


def numbers(seed: int) -> Tensor:
    return torch.randn(UNITS.n, generator=torch.Generator().manual_seed(seed)).double()


@given(st.sampled_from(KINDS), st.floats(0.1, 0.4), st.floats(0.0, 0.4), st.integers(0, 99))
def test_masks_and_probabilities_stay_within(kind, rate, more, seed):
    large = Budget(UNITS, rate, kind).round(numbers(seed))
    budget = Budget(UNITS, min(0.6, rate + more), kind)
    nested = NestedBudget(budget, large)
    mask, probabilities = nested.round(numbers(seed + 1)), nested.project(numbers(seed + 2).abs())
    assert bool((mask <= large).all())
    assert not probabilities[large == 0].any()
    for pool in budget.pools:
        assert int(pool.cost @ mask[pool.members].long()) <= pool.capacity
        assert float(pool.cost.double() @ probabilities[pool.members]) <= pool.share + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_limit_changes_nothing(kind):
    budget = Budget(UNITS, 0.4, kind)
    nested = NestedBudget(budget, UNITS.ones())
    assert torch.equal(nested.round(numbers(0)), budget.round(numbers(0)))
    assert torch.equal(nested.project(numbers(0)), budget.project(numbers(0)))
    assert not isinstance(nested.with_rate(0.5), NestedBudget)


def test_an_allowed_unit_is_kept_rather_than_a_better_one_that_is_not():
    large = Budget(UNITS, 0.5, "units").round(numbers(0))
    nested = NestedBudget(Budget(UNITS, 0.5, "units"), large)
    assert torch.equal(nested.round(-numbers(0)), large)
