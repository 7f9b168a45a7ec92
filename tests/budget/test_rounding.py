"""Rounding to multiples of N channels, and to the same numbers in all layers."""

from functools import reduce
from itertools import product
from operator import add

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_budget import keep, numbers, pools, reference_capacities

from helpers.tiny import toy_units
from pgprune import PruningError
from pgprune.budget.budget import BUDGETS, Budget
from pgprune.masking.units import PruningUnits

UNITS = toy_units(layers=2, kv_heads=2, channels=7)
CHANNELS = toy_units(layers=3, channels=7, granularity="channels")
RATES = (0.1, 0.25, 0.3, 1 / 3, 0.5)
CHUNKS = (1, 2, 3)


def scores_of(units: PruningUnits) -> st.SearchStrategy[torch.Tensor]:
    return st.lists(numbers, min_size=units.n, max_size=units.n).map(
        lambda values: torch.tensor(values, dtype=torch.float64)
    )


def kept_of(units: PruningUnits, mask: torch.Tensor, kind: str) -> list[int]:
    """Counts the units of a kind that each layer keeps."""
    return [int(mask[g.start : g.stop].sum()) for g in units.groups if g.kind == kind]


def budgets(units: PruningUnits, kinds=BUDGETS) -> st.SearchStrategy[Budget]:
    return st.builds(
        Budget,
        st.just(units),
        st.sampled_from(RATES),
        st.sampled_from(kinds),
        st.just("global"),
        st.sampled_from(CHUNKS),
    )


def items(budget: Budget, members: list[int], values: list[float]) -> list[tuple[float, list[int]]]:
    """Lists what is kept at once (a kv group, or N channels of a layer): mean score and units."""
    found = []
    for group in budget.units.groups:
        size = budget.round_to if group.kind == "channels" else 1
        own = sorted(
            (i for i in members if group.start <= i < group.stop), key=lambda i: -values[i]
        )
        chunks = [own[start : start + size] for start in range(0, len(own), size)]
        whole = [chunk for chunk in chunks if len(chunk) == size]
        found += [(reduce(add, (values[i] for i in c)) / size, c) for c in whole]
    return found


@given(budgets(UNITS), scores_of(UNITS))
def test_the_best_items_are_kept_while_they_fit(budget, values):
    expected = [0] * UNITS.n
    for (members, cost), capacity in zip(pools(budget), capacities(budget), strict=True):
        price = dict(zip(members, cost, strict=True))
        for _, units in sorted(items(budget, members, values.tolist()), key=lambda item: -item[0]):
            if len(units) * price[units[0]] <= capacity:
                capacity -= len(units) * price[units[0]]
                for i in units:
                    expected[i] = 1
    assert budget.round(values).tolist() == expected


def capacities(budget: Budget) -> list[int]:
    return reference_capacities(Budget(budget.units, budget.prune_rate, budget.kind))


@given(budgets(UNITS), scores_of(UNITS))
def test_multiples_within_the_budget_that_no_further_chunk_fits_into(budget, values):
    mask = budget.round(values)
    kept = kept_of(UNITS, mask, "channels")
    assert all(count % budget.round_to == 0 for count in kept)
    assert budget.excess(mask[None]).tolist() == [0]
    for (members, cost), capacity in zip(pools(budget), capacities(budget), strict=True):
        price = dict(zip(members, cost, strict=True))
        used = sum(price[i] for i in members if mask[i])
        for group in (g for g in UNITS.groups if g.start in price):
            size = budget.round_to if group.kind == "channels" else 1
            if int(mask[group.start : group.stop].sum()) + size <= group.stop - group.start:
                assert used + size * price[group.start] > capacity


@given(budgets(CHANNELS, ["per-kind", "units"]), scores_of(CHANNELS))
def test_no_mask_of_multiples_scores_higher(budget, values):
    mask, chunk = budget.round(values), budget.round_to
    layers = values.view(3, 7).sort(descending=True).values
    (capacity,) = capacities(budget)
    limit = min(capacity // chunk, 3 * (7 // chunk))
    best = max(
        sum(
            float(layer[: count * chunk].sum()) for layer, count in zip(layers, counts, strict=True)
        )
        for counts in product(range(7 // chunk + 1), repeat=3)
        if sum(counts) == limit
    )
    assert float(values[mask.bool()].sum()) == pytest.approx(best, abs=1e-9)


@given(st.sampled_from(RATES), st.sampled_from(CHUNKS), scores_of(CHANNELS))
def test_locally_the_remainder_goes_by_largest_remainder_of_chunks(rate, chunk, values):
    budget = Budget(CHANNELS, rate, scope="local", round_to=chunk)
    kept = kept_of(CHANNELS, budget.round(values), "channels")
    share = 7 * keep(budget) / chunk  # of a layer, in chunks
    total = int(3 * min(share, 7 // chunk))
    assert [count // chunk for count in kept] == [total // 3 + (i < total % 3) for i in range(3)]


@given(budgets(toy_units(layers=2, channels=6)), scores_of(toy_units(layers=2, channels=6)))
def test_chunks_of_blocks(budget, values):
    """Two channels a unit: a multiple of 4 or 6 channels is one of 2 or 3 units."""
    shapes = toy_units(layers=2, channels=12).shapes
    blocks = PruningUnits(shapes, channel_block=2)
    pairs = Budget(blocks, budget.prune_rate, budget.kind, round_to=2 * budget.round_to)
    if "parameters" not in budget.kind:  # a pair costs more
        assert torch.equal(pairs.round(values), budget.round(values))
    assert all(c % budget.round_to == 0 for c in kept_of(blocks, pairs.round(values), "channels"))


@given(budgets(UNITS), scores_of(UNITS))
def test_project_knows_nothing_of_chunks(budget, z):
    free = Budget(UNITS, budget.prune_rate, budget.kind)
    assert torch.equal(budget.project(z), free.project(z))


def test_infinite_scores_are_the_largest():
    values = torch.tensor([1.0, 2, torch.inf, -torch.inf, 0, 0, 0] * 3)
    mask = Budget(CHANNELS, 0.5, round_to=3).round(values)
    assert mask.view(3, 7)[:, :4].tolist() == [[1, 1, 1, 0]] * 3


@given(st.sampled_from(RATES), st.sampled_from(CHUNKS), scores_of(UNITS))
def test_uniform_keeps_the_floor_of_the_share_in_every_layer(rate, chunk, values):
    budget = Budget(UNITS, rate, scope="uniform", round_to=chunk)
    mask = budget.round(values)
    assert budget.excess(mask[None]).tolist() == [0]
    counts = {"heads": int(2 * keep(budget)), "channels": int(7 * keep(budget)) // chunk * chunk}
    for group in UNITS.groups:
        order = sorted(range(group.start, group.stop), key=lambda i: (-values[i], i))
        best = order[: counts[group.kind]]
        assert {i for i in order if mask[i]} == set(best)


@given(st.sampled_from(RATES), scores_of(UNITS))
def test_the_relaxed_problem_of_uniform_is_that_of_local(rate, z):
    uniform, local = (Budget(UNITS, rate, scope=scope) for scope in ("uniform", "local"))
    assert torch.equal(uniform.project(z), local.project(z))


def test_other_rates_and_a_metrics_own_budget_stay_uniform():
    budget = Budget(UNITS, 0.5, scope="uniform", round_to=2)
    for other in (budget.with_rate(0.25), budget.local()):
        assert (other.kind, other.scope, other.round_to) == ("per-kind", "uniform", 2)
    assert budget.with_rate(0.25).prune_rate == 0.25
    assert Budget(UNITS, 0.5, "units", round_to=3).local().round_to == 3


HEADS, BLOCKS, LAYERS = (toy_units(granularity=name) for name in ("heads", "blocks", "layers"))
PAIRS = PruningUnits(toy_units(channels=6).shapes, channel_block=2)
UNIFORM = {"scope": "uniform"}


@pytest.mark.parametrize(
    ("units", "rate", "options", "message"),
    [
        (BLOCKS, 0.5, UNIFORM, "granularity blocks "),
        (LAYERS, 0.5, UNIFORM, "granularity layers "),
        (UNITS, 0.5, UNIFORM | {"kind": "units"}, "scope uniform .* budget units"),
        (UNITS, 0.5, UNIFORM | {"kind": "parameters"}, "scope uniform .* budget parameters"),
        (UNITS, 0.6, UNIFORM, "0.6 leaves nothing of heads in any layer of 2 .* at most 0.5 or"),
        (
            *(UNITS, 0.45, UNIFORM | {"round_to": 4}),
            "nothing of channels in any layer of 7 .* at most 0.4285, a round_to below 4 or",
        ),
        (CHANNELS, 0.7, {"round_to": 7}, "channels.* round_to below 7"),
        (BLOCKS, 0.5, {"round_to": 2}, "granularity blocks "),
        (LAYERS, 0.5, {"round_to": 2}, "granularity layers "),
        (HEADS, 0.5, {"round_to": 2}, "granularity heads "),
        (UNITS, 0.5, {"round_to": 8}, "round_to 8 .* 7 channels of layer 0"),
        (PAIRS, 0.5, {"round_to": 3}, "round_to 3 .* channel_block 2"),
        *(
            (UNITS, 0.5, {"round_to": n}, "round_to .* whole number")
            for n in (0, -1, 2.0, True, None, "8")
        ),
    ],
)
def test_what_cannot_be_made_equal_or_a_multiple_is_refused(units, rate, options, message):
    with pytest.raises(PruningError, match=message):
        Budget(units, rate, **options)
