"""Metrics of the weights and their gradients against plain Hugging Face models and autograd."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.salience import naive_scores, salience
from helpers.tiny import masked_lm, tiny_model, tokens, toy_units
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.masking.units import PruningUnits
from pgprune.metrics import METRICS, Importance
from pgprune.metrics.gradients import WeightGradients
from pgprune.metrics.importance import outer_units, ranks
from pgprune.metrics.llm_pruner import TAYLOR

WINDOWS = tokens(batch=4, length=10)


@pytest.mark.parametrize("taylor", TAYLOR)
def test_llm_pruner_adds_up_the_expansion_over_rows_and_columns(model, taylor):
    lm = masked_lm(model, channel_block=3)
    expected = naive_scores(model, lm.units, salience(model, WINDOWS, taylor))
    importance = METRICS["llm-pruner"](lm, WINDOWS, Budget(lm.units, 0.5), 0, taylor=taylor)
    torch.testing.assert_close(importance.scores, expected, rtol=1e-5, atol=0)  # float32 norms
    assert importance.local


@pytest.mark.parametrize("granularity", ["layers", "blocks"])
def test_layerwise_taylor_adds_up_everything_that_a_block_has(model, granularity):
    lm = masked_lm(model, granularity)
    expected = naive_scores(model, lm.units, salience(model, WINDOWS, "element-first"))
    importance = METRICS["layerwise-taylor"](lm, WINDOWS, Budget(lm.units, 0.4), 0)
    torch.testing.assert_close(importance.scores, expected, rtol=1e-5, atol=0)
    budget = Budget(lm.units, 0.4)
    assert torch.equal(importance.mask(budget), budget.round(expected))
    assert not importance.local


@pytest.mark.parametrize("granularity", ["heads+channels", "values", "blocks", "layers"])
def test_magnitude_adds_up_absolute_weights_and_reads_no_text(model, granularity):
    lm = masked_lm(model, granularity)
    weights = {name: weight.abs() for name, weight in model.named_parameters()}
    budget = Budget(lm.units, 0.5)
    importance = METRICS["magnitude"](lm, WINDOWS, budget, 0)
    expected = naive_scores(model, lm.units, weights)
    torch.testing.assert_close(importance.scores, expected)
    fine = granularity in ("heads+channels", "values")
    assert torch.equal(
        importance.mask(budget), (budget.local() if fine else budget).round(expected)
    )
    assert lm.meter.tokens == 0


def test_the_model_is_left_as_it_was(model):
    lm = masked_lm(model)
    before = copy.deepcopy(model.state_dict())
    with_chunks = WeightGradients(lm, WINDOWS, pass_tokens=20).mean  # two windows at a time
    assert lm.meter.tokens == 2 * WINDOWS.numel()  # forward and backward
    for parameter, gradient in WeightGradients(lm, WINDOWS, squares=True).mean.items():
        torch.testing.assert_close(with_chunks[parameter], gradient, rtol=1e-4, atol=1e-7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_an_error_leaves_the_model_as_it_was_too():
    lm = masked_lm(tiny_model("llama"))
    with pytest.raises(IndexError):
        WeightGradients(lm, WINDOWS + 1000)  # no such tokens
    assert not any(p.requires_grad or p.grad is not None for p in lm.model.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in lm.model.parameters())


def test_an_unknown_expansion_lists_the_known():
    lm = masked_lm(tiny_model("llama"))
    with pytest.raises(PruningError, match="'third'.*element-first, .*vector"):
        METRICS["llm-pruner"](lm, WINDOWS, Budget(lm.units, 0.5), 0, taylor="third")


def test_as_many_outer_layers_are_kept_as_in_the_originals():
    published = {3: (0, 0), 5: (1, 0), 12: (2, 1), 32: (4, 2), 80: (10, 5)}
    for layers, (first, last) in published.items():
        units = toy_units(layers)
        outer = (units.layer < first) | (units.layer >= layers - last)
        assert torch.equal(outer_units(Budget(units, 0.1)), outer)


@pytest.mark.parametrize("kind", ["per-kind", "units", "parameters"])
def test_the_layers_between_lose_alike(kind):
    units = toy_units(layers=16, kv_heads=4, channels=12)
    budget = Budget(units, 0.5 * 13 / 16, kind)
    scores = torch.rand(units.n, generator=torch.Generator().manual_seed(0)).double()
    mask = Importance(scores, local=True, protected=outer_units(budget)).mask(budget)
    kept = units.kept_shares(mask[None])[0]
    outer = [group.layer in (0, 1, 15) for group in units.groups]
    assert kept.tolist() == [1.0 if whole else 0.5 for whole in outer]


def test_within_a_layer_the_best_are_kept_and_ties_go_by_index():
    units = toy_units(layers=2, kv_heads=2, channels=4)
    scores = torch.tensor([1e9, 2e9, 5, 7, 5, 6, -3, -2, 0, 0, 0, 0], dtype=torch.float64)
    expected = [0.5, 1, 0.5, 1, 0.25, 0.75, 0.5, 1, 1, 0.75, 0.5, 0.25]
    assert ranks(units, scores).tolist() == expected


def test_more_than_the_layers_between_hold_is_refused_before_any_work():
    model = tiny_model("llama", num_hidden_layers=8)
    lm = masked_lm(model)
    most, more = Budget(lm.units, 0.75), Budget(lm.units, 0.8)
    with pytest.raises(PruningError, match=r"rate 0\.8 .*0\.75"):
        METRICS["llm-pruner"](lm, WINDOWS, more, 0)
    assert lm.meter.tokens == 0
    unprotected = METRICS["llm-pruner"](lm, WINDOWS, more, 0, protect_layers=False)
    assert unprotected.mask(more).sum() == more.round(unprotected.scores).sum()
    assert METRICS["llm-pruner"](lm, WINDOWS, most, 0).mask(most).sum() == 2 * (2 + 12)


def test_where_every_layer_must_keep_its_share_none_is_protected():
    lm = masked_lm(tiny_model("llama", num_hidden_layers=8))
    for scope in ("local", "uniform"):
        budget = Budget(lm.units, 0.5, scope=scope)
        mask = METRICS["llm-pruner"](lm, WINDOWS, budget, 0).mask(budget)
        assert lm.units.kept_shares(mask[None]).unique().tolist() == [0.5]


def test_llama_3_8b_keeps_as_many_parameters_as_the_original_reports():
    """Ratio 0.25 on layers 4 to 29 of 32: 6,612,586,496 parameters (horseee/LLM-Pruner)."""
    sizes = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336}
    config = LlamaConfig(**sizes, num_hidden_layers=32, num_key_value_heads=8)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    units = PruningUnits.of(model)
    budget = Budget(units, 0.25 * 26 / 32)
    scores = torch.rand(units.n, generator=torch.Generator().manual_seed(0)).double()
    mask = Importance(scores, local=True, protected=outer_units(budget)).mask(budget)
    kept = sum(p.numel() for p in model.parameters()) - units.pruned_parameters(mask)
    assert kept == 6_612_586_496
