"""Bounds count what the exported model and its real cache take, to the byte."""

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from helpers.masks import case_of
from helpers.mixtures import with_experts
from helpers.pruned import parameters
from helpers.tiny import masked_lm, tiny_model, tokens
from pgprune import PruningError
from pgprune.budget.bounds import bounds_of
from pgprune.budget.budget import Budget
from pgprune.budget.targets import Target
from pgprune.masking.units import PruningUnits
from pgprune.repair.config import added_parameters
from pgprune.repair.fit import fit_repair
from pgprune.surgery.layers import prune

BATCH, LENGTH = 2, 9  # the sliding windows of the tiny models are shorter
EVERYTHING = Target.parse("parameters<=1"), Target.parse("memory<=1B@2x9")


@torch.no_grad()
def cache_bytes(model: PreTrainedModel) -> int:
    """What keys and values of a batch take once they are computed."""
    cache = DynamicCache(config=model.config)
    model(tokens(BATCH, LENGTH), past_key_values=cache, use_cache=True)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def weight_bytes(model: PreTrainedModel) -> int:
    return sum(weight.nbytes for weight in model.parameters())


@pytest.mark.parametrize(
    "family, granularity",
    [("gemma2", "heads+channels"), ("qwen3", "values"), ("opt", "blocks"), ("llama", "layers")],
)
def test_what_a_bound_counts_is_what_the_pruned_model_takes(family, granularity):
    case = case_of(tiny_model(family), granularity)
    count, memory = bounds_of(EVERYTHING, case.model, case.units)
    for name, mask in list(zip(case.names, case.masks, strict=True))[::2]:
        if not mask.any():
            continue  # no model is left
        pruned = prune(case.model, case.units, mask)
        assert count.value(mask) == parameters(pruned), name
        assert memory.value(mask) == weight_bytes(pruned) + cache_bytes(pruned), name
        for bound in (count, memory):
            kept = int(bound.cost[mask.bool()].sum())
            assert bound.fixed + kept >= bound.value(mask), f"{name}: costs are a promise"


def active_parameters(model: PreTrainedModel) -> int:
    """All parameters but those of the experts that a token does not use."""
    unused = 0
    for layer, router in with_experts(model).items():
        experts = model.model.layers[layer].mlp.experts
        of_one = sum(weight[0].numel() for weight in experts.parameters())
        unused += (len(router.weight) - router.top_k) * of_one
    return parameters(model) - unused


@pytest.mark.parametrize("family", ["qwen3_moe", "glm4_moe"])
def test_what_a_token_uses_of_a_mixture(family):
    case = case_of(tiny_model(family), "heads+experts")
    (bound,) = bounds_of([Target.parse("active-parameters<=1")], case.model, case.units)
    assert bound.fixed + bound.total == active_parameters(case.model) < parameters(case.model)
    for mask in case.masks[::2]:
        if (case.units.kept_counts(mask[None])[0] >= case.units.needed).all():
            pruned = prune(case.model, case.units, mask)
            kept = bound.fixed + int(bound.cost[mask.bool()].sum())
            assert kept == bound.value(mask) == active_parameters(pruned)


def test_costs_of_everything_are_the_dense_model():
    model = tiny_model("llama")
    units = PruningUnits.of(model)
    for bound in bounds_of(EVERYTHING, model, units):
        assert bound.fixed + bound.total == bound.value(units.ones())


def test_tied_embeddings_and_other_formats_count_as_they_are():
    model = tiny_model("llama", tie_word_embeddings=True).to(torch.bfloat16)
    units = PruningUnits.of(model)
    (weights,) = bounds_of([Target.parse("memory<=1KB")], model, units)
    assert weights.value(units.ones()) == 2 * parameters(model)


def test_biases_of_a_repair_count():
    lm = masked_lm(tiny_model("qwen2"))  # without biases of its own
    units = lm.units
    (bound,) = bounds_of([Target.parse("parameters<=1")], lm.model, units, biases=True)
    mask = Budget(units, 0.3).round(torch.rand(units.n))
    repair = fit_repair(lm, mask, tokens(8, 8), "bias")
    added = added_parameters(lm.model, repair)
    assert 0 < added <= bound.fixed + bound.total - parameters(lm.model)
    pruned = prune(lm.model, units, mask, repair)
    assert bound.value(mask, added) == parameters(pruned)


@pytest.mark.parametrize(
    "target, sentence",
    [
        ("parameters<=1B", "the dense model meets the target already: parameters<=1B"),
        ("memory<=1MB@2x999", "is longer than the context of 64 tokens"),
    ],
)
def test_a_target_that_asks_for_nothing_or_cannot_be_counted(target, sentence):
    model = tiny_model("llama")
    with pytest.raises(PruningError, match=sentence):
        bounds_of([Target.parse(target)], model, PruningUnits.of(model))


def test_what_cannot_be_met_says_the_smallest_value():
    model = tiny_model("llama")
    units = PruningUnits.of(model)
    bounds = bounds_of([Target.parse("parameters<=100")], model, units)
    with pytest.raises(PruningError, match="parameters<=100 cannot be met") as refused:
        Budget.within(units, bounds)
    smallest = str(refused.value).split("leads to is ")[1].split(";")[0].replace(",", "")
    number = int(smallest.split()[0])
    assert Budget.within(
        units, bounds_of([Target.parse(f"parameters<={number}")], model, units), "parameters"
    )
