"""What is asked to stay stays: shares of kinds in each layer, and whole layers."""

import pytest
import torch

from helpers.tiny import toy_units
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.budget.least import asked_least
from pgprune.budget.problem import PruningConfig
from pgprune.metrics.importance import Importance

UNITS = toy_units(layers=4, kv_heads=4, channels=8)


def some_scores(seed: int) -> torch.Tensor:
    return torch.rand(UNITS.n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["per-kind", "parameters"])
@pytest.mark.parametrize("round_to", [1, 2])
def test_roundings_and_projections_keep_what_is_asked(kind, round_to):
    units = asked_least(UNITS, ["heads=0.5"], "0,-1")
    assert units.least.tolist() == [4, 8, 2, 0, 2, 0, 4, 8]
    budget = Budget(units, 0.2, kind, round_to=round_to)
    for seed in range(5):
        scores = some_scores(seed) - units.layer.eq(0).double()  # layer 0 is worth least
        mask = budget.round(scores)
        assert budget.keeps_enough(mask)
        assert float(budget.excess(mask[None])) == 0
        kept = units.kept_counts(budget.project(scores)[None])[0]
        assert bool((kept >= units.least - 1e-6).all())


def test_local_scores_count_by_rank_where_layers_stay_whole():
    budget = Budget(asked_least(UNITS, None, "1"), 0.3)
    mask = Importance(some_scores(0), local=True).mask(budget)
    assert budget.keeps_enough(mask)
    assert not Budget(UNITS, 0.3).local().round(some_scores(0))[UNITS.layer == 1].all()


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"keep_at_least": ("heads",)}, "'heads' is not of the form KIND=SHARE"),
        ({"keep_at_least": ("heads=2",)}, "with a share above 0 and at most 1"),
        ({"keep_layers": "first"}, "--keep-layers 'first' is no list of layers"),
    ],
)
def test_mistakes_are_refused_before_a_model_is_loaded(options, sentence):
    with pytest.raises(PruningError, match=sentence):
        PruningConfig(**options)


@pytest.mark.parametrize(
    "at_least, layers, sentence",
    [
        (["values=0.5"], None, "values is no kind of unit of granularity heads.channels"),
        (None, "4", "--keep-layers 4 is no layer of the model, which has 4"),
    ],
)
def test_what_the_model_does_not_have_is_refused(at_least, layers, sentence):
    with pytest.raises(PruningError, match=sentence):
        asked_least(UNITS, at_least, layers)


def test_a_rate_that_leaves_less_names_the_largest():
    units = asked_least(UNITS, ["heads=0.75", "channels=0.75"], None)
    with pytest.raises(PruningError, match="choose a rate of at most 0.25"):
        Budget(units, 0.5)
    Budget(units, 0.25)


@pytest.mark.parametrize(
    ("at_least", "layers", "scope", "remedy"),
    [
        (["heads=0.5"], None, "global", "choose a rate of at most 0.5"),
        (["heads=1"], None, "global", "keep less of a kind, or choose another --granularity"),
        (None, "0", "local", "choose scope global"),
    ],
)
def test_what_leaves_no_room_names_what_would(at_least, layers, scope, remedy):
    with pytest.raises(PruningError, match=f"layers ask for; {remedy}"):
        Budget(asked_least(UNITS, at_least, layers), 0.6, scope=scope)
