"""Experts and channels: exactly as many as the share of parameters allows, by enumeration."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import pytest
import torch

from helpers.mixtures import MIXTURES
from helpers.pruned import parameters
from helpers.tiny import tiny_model, toy_units
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.budget.least import asked_least
from pgprune.budget.problem import PruningConfig
from pgprune.masking.units import PruningUnits
from pgprune.surgery.layers import prune

# An expert has 4 of its own and 3 for each of 10 channels; a channel has 5 beside those.
SHAPE = replace(
    toy_units().shapes[0],
    channels=10,
    channel_cost=6 * 3 + 5,
    experts=6,
    experts_per_token=2,
    expert_cost=4 + 10 * 3,
    router_row_cost=4,
    expert_channel_cost=3,
)
PLAIN = replace(SHAPE, channels=0, channel_cost=0, experts=0, experts_per_token=0, expert_cost=0)
UNITS = PruningUnits([SHAPE, PLAIN, SHAPE], "experts+channels")
TOTAL = 6 * (4 + 10 * 3) + 10 * 5


def left(experts: int, channels: int) -> int:
    return experts * (4 + channels * 3) + channels * 5


def kept(budget: Budget, seed: int = 0) -> tuple[int, int]:
    """Experts and channels of each layer that has some."""
    generator = torch.Generator().manual_seed(seed)
    mask = budget.round(torch.rand(budget.units.n, generator=generator))
    counts = budget.units.kept_counts(mask[None])[0].view(3, 2)
    assert counts[1].tolist() == [0, 0]
    assert torch.equal(counts[0], counts[2])
    return int(counts[0, 0]), int(counts[0, 1])


@pytest.mark.parametrize("percent", range(2, 80, 6))
@pytest.mark.parametrize("round_to", [1, 4])
def test_the_smaller_share_is_the_largest_of_all_pairs_within_the_budget(percent, round_to):
    step = 2 if round_to == 1 else 4  # 2 is what 10 channels and 8 have in common
    room = (1 - Fraction(percent, 100)) * TOTAL
    pairs = [p for p in product(range(2, 7), range(step, 11, step)) if left(*p) <= room]
    shares = {pair: min(Fraction(pair[0], 6), Fraction(pair[1], 10)) for pair in pairs}
    found = kept(Budget(UNITS, percent / 100, scope="uniform", round_to=round_to))
    assert found in pairs
    assert shares[found] == max(shares.values())
    assert (found[0], found[1] + step) not in pairs


def test_parameters_that_two_kinds_share_count_once():
    assert UNITS.prunable == 2 * TOTAL
    mask = UNITS.ones()
    assert (UNITS.kept_parameters(mask), UNITS.pruned_parameters(mask)) == (2 * TOTAL, 0)
    mask[:2] = mask[6:9] = 0  # two experts and three channels of the first layer
    assert UNITS.kept_parameters(mask) == left(4, 7) + TOTAL
    assert UNITS.pruned_parameters(mask) == TOTAL - left(4, 7)
    assert UNITS.prune_rate(mask) == 1 - (left(4, 7) + TOTAL) / (2 * TOTAL)


@pytest.mark.parametrize("family", MIXTURES)
def test_a_rate_is_the_share_of_parameters_that_is_gone(family):
    name = {"moe_intermediate_size", "intermediate_size"} & set(vars(MIXTURES[family]))
    model = tiny_model(family, **{max(name): 48})
    units = PruningUnits.of(model, "experts+channels")
    budget = Budget(units, 0.4, scope="uniform")
    mask = budget.round(torch.arange(units.n).double())
    gone = parameters(model) - parameters(prune(model, units, mask))
    one_step = 8 * (32 * 3 + 2) * 5 * 3  # of channels of four experts and a shared one
    assert 0 <= gone - 0.4 * units.prunable < one_step
    assert budget.target_share == 0.6
    assert float(budget.kept_share(mask[None])) == 0.6
    assert float(budget.excess(units.ones()[None])) > 0.1


def test_other_rates_and_layers_have_the_same_budget():
    budget = Budget(UNITS, 0.5, scope="uniform")
    assert kept(budget.local()) == kept(budget)
    assert kept(budget.with_rate(0.2)) == kept(Budget(UNITS, 0.2, scope="uniform"))


def test_experts_that_must_stay_become_narrower():
    units = asked_least(UNITS, ["experts=1"], None)
    assert kept(Budget(units, 0.5, scope="uniform")) == (6, 4)
    assert left(6, 4) <= 0.5 * TOTAL < left(6, 6)
    with pytest.raises(PruningError, match="less than 6 experts of 2 channels, .* at most 0.724"):
        Budget(units, 0.8, scope="uniform")


def test_probabilities_are_projected_to_the_same_numbers():
    budget = Budget(UNITS, 0.5, scope="uniform")
    start = budget.project(torch.full((UNITS.n,), 0.9, dtype=torch.float64))
    sums = [float(start[group.start : group.stop].sum()) for group in UNITS.groups]
    assert sums == pytest.approx([*kept(budget), 0, 0, *kept(budget)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune_rate": 0.95}, "less than 2 experts of 2 channels, .* at most 0.8818"),
        ({"prune_rate": 0.5, "round_to": 11}, "round_to 11 is more than the 10 channels"),
        ({"prune_rate": 0.5, "scope": "global"}, "multiply; choose budget per-kind and scope"),
        ({"prune_rate": 0.5, "kind": "parameters"}, "uniform needs budget per-kind|multiply"),
    ],
)
def test_what_cannot_be_kept_is_refused(options, message):
    with pytest.raises(PruningError, match=message):
        Budget(UNITS, **{"scope": "uniform"} | options)
    assert Budget(UNITS, 0.88, scope="uniform")


def test_layers_that_differ_already_are_refused():
    units = PruningUnits([SHAPE, replace(SHAPE, experts=5)], "experts+channels")
    with pytest.raises(PruningError, match="layers of the model have different numbers"):
        Budget(units, 0.5, scope="uniform")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": ("parameters<=1B",)}, "a target adds up .*; give --prune-rate in its place"),
        ({"scope": "global"}, "budget per-kind and scope global add up"),
        ({"budget": "parameters"}, "budget parameters and scope global add up"),
    ],
)
def test_options_that_add_up_are_refused_before_a_model_is_loaded(options, message):
    with pytest.raises(PruningError, match=message):
        PruningConfig(granularity="experts+channels", **options)
    assert PruningConfig(granularity="experts+channels").scope == "uniform"


def test_units_that_must_all_stay_leave_no_rate():
    units = asked_least(UNITS, ["experts=1", "channels=1"], None)
    with pytest.raises(PruningError, match="a layer keeps; keep less of a kind, or choose gran"):
        Budget(units, 0.2, scope="uniform")
