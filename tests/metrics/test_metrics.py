"""Metrics against the same numbers computed naively with plain Hugging Face models."""

import copy
import re

import pytest
import torch

from helpers.inputs import inputs_of
from helpers.mixtures import family_with
from helpers.tiny import (
    inputs_of_unit,
    layers_of,
    projections_of,
    tiny_model,
    tokens,
    zeroed,
)
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.masking.executors import EXECUTORS
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import GRANULARITIES, PruningUnits
from pgprune.metrics import METRICS


def problem(model, granularity="heads+channels", rate=0.5, **options):
    units = PruningUnits.of(model, granularity, options.pop("channel_block", 1))
    lm = MaskedLM(model, units, options.pop("executor", "masked"))
    options.setdefault("scope", "uniform" if units.multiply else "global")
    return lm, tokens(batch=6, length=12), Budget(units, rate, **options)


def naive_wanda_sp(model, ids, units, keep):
    """Layer by layer: score the dense layer in a model whose earlier layers are pruned."""
    per_group = units.shapes[0].query_heads_per_group
    mask, scores = units.ones(), torch.zeros(units.n, dtype=torch.float64)
    for layer in range(len(layers_of(model))):
        pruned = zeroed(model, units, mask)
        for group in (group for group in units.groups if group.layer == layer):
            projection = projections_of(pruned, layer)[group.kind == "channels"]
            x = inputs_of(pruned, ids)[layer, group.projection].flatten(0, -2)
            metric = projection.weight.abs().mean(0) * x.square().mean(0).sqrt()  # (inputs,)
            parts = [inputs_of_unit(units, group, j) for j in range(group.stop - group.start)]
            unit = torch.stack([metric[part].sum() for part in parts])
            scores[group.start : group.stop] = unit / (1 if group.kind == "channels" else per_group)
        for group in (group for group in units.groups if group.layer == layer):
            here = slice(group.start, group.stop)
            pruned_ones = scores[here].argsort()[: round((1 - keep) * (here.stop - here.start))]
            mask[here][pruned_ones] = 0
    return scores, mask


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("granularity", "channel_block"),
    [
        ("heads+channels", 1),
        ("heads+channels", 3),
        ("heads", 1),
        ("channels", 1),
        ("values+channels", 1),
    ],
)
def test_wanda_sp_is_column_norms_times_activations_on_pruned_inputs(
    model, executor, granularity, channel_block
):
    lm, ids, budget = problem(model, granularity, channel_block=channel_block, executor=executor)
    lm.pass_tokens = 30  # several chunks of windows
    scores, mask = naive_wanda_sp(copy.deepcopy(model), ids, lm.units, keep=0.5)
    importance = METRICS["wanda-sp"](lm, ids, budget, seed=0)
    torch.testing.assert_close(importance.scores, scores, rtol=1e-5, atol=0)  # sums in float32
    assert importance.mask(budget).tolist() == mask.tolist()
    assert importance.local


@pytest.mark.parametrize("kind", ["per-kind", "units", "parameters"])
def test_the_mask_of_wanda_sp_keeps_every_kind_in_every_layer_alike(kind):
    lm, ids, budget = problem(tiny_model("qwen2"), kind=kind)
    mask = METRICS["wanda-sp"](lm, ids, budget, seed=0).mask(budget)
    assert lm.units.kept_shares(mask[None])[0].tolist() == [0.5] * len(lm.units.groups)
    assert float(budget.excess(mask[None])) == 0


def test_layerwise_ppl_is_the_loss_without_a_layer(model):
    lm, ids, budget = problem(model, "layers", rate=0.4)
    expected = []
    for layer in range(3):
        without = copy.deepcopy(model)
        del layers_of(without)[layer]
        without.config.use_cache = False  # whose layers are numbered as before
        expected.append(sum(float(without(row[None], labels=row[None]).loss) for row in ids) / 6)
    importance = METRICS["layerwise-ppl"](lm, ids, budget, seed=0)
    assert importance.scores.tolist() == pytest.approx(expected, abs=1e-6)
    assert importance.mask(budget).sum() == 1
    assert importance.mask(budget)[torch.tensor(expected).argmax()] == 1
    assert not importance.local


def test_layerwise_ppl_of_blocks():
    lm, ids, budget = problem(tiny_model("llama"), "blocks", rate=0.4)
    ones = lm.units.ones()
    expected = []
    for unit in range(lm.units.n):
        plain = zeroed(lm.model, lm.units, torch.where(torch.arange(lm.units.n) == unit, 0, ones))
        expected.append(float(plain(ids, labels=ids).loss))
    importance = METRICS["layerwise-ppl"](lm, ids, budget, seed=0)
    assert importance.scores.tolist() == pytest.approx(expected, abs=1e-6)
    kept = lm.units.kept_shares(importance.mask(budget)[None])
    assert kept.sum() == 2  # one attention, one MLP block


def test_a_layer_without_which_the_loss_is_no_number_is_the_most_important():
    lm, ids, budget = problem(tiny_model("llama"), "layers", rate=0.4)
    lm.losses = lambda masks, ids: torch.full((1, len(ids)), 1.0 if masks[0, 1] else torch.nan)
    assert METRICS["layerwise-ppl"](lm, ids, budget, seed=0).mask(budget).tolist() == [0, 1, 0]


def test_random_is_a_function_of_the_seed():
    lm, ids, budget = problem(tiny_model("llama"))
    first, again, other = (METRICS["random"](lm, ids, budget, seed) for seed in (0, 0, 1))
    assert torch.equal(first.scores, again.scores)
    assert not torch.equal(first.scores, other.scores)
    assert torch.equal(first.mask(budget), budget.round(first.scores))
    assert lm.meter.tokens == 0


@pytest.mark.parametrize(
    ("metric", "granularity"),
    [(name, g) for name, m in METRICS.items() for g in GRANULARITIES if g not in m.granularities],
)
def test_a_metric_of_other_units_is_refused_before_any_work(metric, granularity):
    lm, ids, budget = problem(tiny_model(family_with(granularity)), granularity)
    with pytest.raises(PruningError, match=re.escape(f"{metric} ") + ".*" + re.escape(granularity)):
        METRICS[metric](lm, ids, budget, 0)
    assert lm.meter.tokens == 0
