"""From importance to keep probabilities: sigmoid-norm and score-const (Appendix A.11)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.tiny import toy_units
from pgprune import PruningError
from pgprune.budget.budget import BUDGETS, Budget
from pgprune.metrics import METRICS, Importance
from pgprune.metrics.initialization import (
    PROGRESSIVE,
    TRANSFORMS,
    initial_probabilities,
    metric_name,
    progressive_rates,
)

UNITS = toy_units(layers=2, kv_heads=3, channels=6)


def importance(scores, local=True) -> Importance:
    return Importance(torch.as_tensor(scores, dtype=torch.float64), local)


def sigmoid_norm(scores: list[float], mean: float) -> list[float]:
    """The released code's transform of one group, in plain Python."""
    n = len(scores)
    center = sum(scores) / n
    deviation = math.sqrt(sum((x - center) ** 2 for x in scores) / (n - 1))
    values = [1 / (1 + math.exp(-(x - center) / deviation)) for x in scores]
    shift = mean - sum(values) / n
    return [min(1, max(0, value + shift)) for value in values]


@pytest.mark.parametrize("local", [True, False])
def test_sigmoid_norm_standardises_each_kind_in_each_layer_or_where_scores_compare_in_all(local):
    scores = torch.arange(UNITS.n, dtype=torch.float64) ** 2
    actual = initial_probabilities(importance(scores, local), Budget(UNITS, 0.5))
    together = UNITS.group if local else UNITS.kind
    for here in (together == number for number in together.unique()):
        expected = sigmoid_norm(scores[here].tolist(), 0.5)
        assert actual[here].tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("granularity", "transform"), [("heads+channels", "sigmoid-norm"), ("layers", "score-const")]
)
def test_few_large_units_start_from_the_metrics_mask_and_many_small_ones_from_its_scores(
    granularity, transform
):
    units = toy_units(layers=6, granularity=granularity)
    budget = Budget(units, 0.5)
    scored = importance(torch.arange(units.n) ** 2, local=False)
    assert torch.equal(
        initial_probabilities(scored, budget, "auto"),
        initial_probabilities(scored, budget, transform),
    )


def test_a_group_of_one_unit_starts_at_the_target():
    budget = Budget(toy_units(layers=4, granularity="blocks"), 0.25)
    actual = initial_probabilities(importance(torch.arange(8)), budget, "sigmoid-norm")
    assert actual.tolist() == [0.75] * 8


def test_equal_scores_start_at_the_target():
    budget = Budget(UNITS, 0.3)
    actual = initial_probabilities(importance(torch.ones(UNITS.n)), budget)
    assert actual.tolist() == pytest.approx([0.7] * UNITS.n)


def test_ranks_start_from_the_metrics_mask_however_far_apart_scores_are():
    budget = Budget(toy_units(layers=2, kv_heads=4, channels=20), 0.25)
    scores = torch.arange(budget.units.n).double().exp()
    given = importance(scores)
    start = initial_probabilities(given, budget, "rank")
    assert torch.equal(budget.round(start), given.mask(budget))
    assert torch.equal(start, initial_probabilities(importance(scores.log()), budget, "rank"))
    assert start.max() > 0.99 and start.min() < 0.01


def test_score_const_is_one_constant_for_what_is_kept_and_its_complement_for_the_rest():
    budget = Budget(UNITS, 0.5)
    given = importance(torch.arange(UNITS.n))
    for constant, kept, pruned in ((0.8, 0.8, 0.2), (0.6, 0.6, 0.4)):
        actual = initial_probabilities(given, budget, "score-const", constant)
        expected = [kept if keep else pruned for keep in given.mask(budget)]
        assert actual.tolist() == pytest.approx(expected)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=UNITS.n, max_size=UNITS.n),
    st.sampled_from(TRANSFORMS),
    st.sampled_from(BUDGETS),
    st.sampled_from(["global", "local"]),
    st.sampled_from([0.05, 0.3, 0.6]),
    st.booleans(),
)
def test_the_start_is_feasible(scores, transform, kind, scope, rate, local):
    budget = Budget(UNITS, rate, kind, scope)
    actual = initial_probabilities(importance(scores, local), budget, transform)
    assert actual.dtype == torch.float64
    assert bool(((actual >= 0) & (actual <= 1)).all())
    assert float(budget.excess(actual[None])) <= 1e-9


def test_sigmoid_norm_keeps_the_order():
    budget = Budget(UNITS, 0.5)
    scores = torch.rand(UNITS.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = initial_probabilities(importance(scores), budget)
    for group in UNITS.groups:
        here = slice(group.start, group.stop)
        assert start[here].argsort().tolist() == scores[here].argsort().tolist()


def test_unknown_names_list_the_known():
    budget = Budget(UNITS, 0.5)
    with pytest.raises(PruningError, match="'softmax'.*auto, sigmoid-norm, score-const"):
        initial_probabilities(importance(torch.ones(UNITS.n)), budget, "softmax")
    with pytest.raises(PruningError, match="'taylor'.*auto, wanda-sp, layerwise-ppl, random"):
        metric_name("taylor", "heads")


@pytest.mark.parametrize(
    ("init", "granularity", "metric"),
    [
        ("auto", "heads+channels", "wanda-sp"),
        ("auto", "channels", "wanda-sp"),
        ("auto", "blocks", "layerwise-ppl"),
        ("auto", "layers", "layerwise-ppl"),
        (PROGRESSIVE, "layers", "random"),
        *((name, "heads", name) for name in METRICS),
    ],
)
def test_the_metric_of_a_start(init, granularity, metric):
    assert metric_name(init, granularity) == metric


def test_progressive_rates_rise_in_steps_of_5_percent():
    assert progressive_rates(0.2) == [0.05, 0.1, 0.15, 0.2]
    assert progressive_rates(0.12) == [0.05, 0.1, 0.12]
    assert progressive_rates(0.03) == [0.03]
    assert len(progressive_rates(0.5)) == 10
