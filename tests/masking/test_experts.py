"""Experts as units: masked == sliced == surgery == reloaded, for every pattern and format."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.masks import Case, case_of, patterns
from helpers.mixtures import MIXTURES
from helpers.pruned import equal_layers, in_pieces, parameters
from helpers.tiny import tiny_model, tokens
from pgprune import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.registration import register
from pgprune.surgery.layers import prune, zero_pruned
from pgprune.surgery.portable import portable_layers

GRANULARITIES = ["experts", "heads+experts", "values", "blocks", "layers"]


@pytest.fixture(params=list(MIXTURES))
def mixture(request):
    return tiny_model(request.param)


def allowed(units: PruningUnits) -> dict[str, torch.Tensor]:
    """The patterns, each with at least as many experts in a layer as a token uses."""
    masks = patterns(units)
    for mask in masks.values():
        for group, least in zip(units.groups, units.least.tolist(), strict=True):
            here = mask[group.start : group.stop]
            missing = least - int(here.sum())
            if missing > 0:
                here[torch.nonzero(here == 0).flatten()[-missing:]] = 1
    return {name: mask for name, mask in masks.items() if units.cost[mask.bool()].sum()}


def kept(case: Case):
    """Name, mask and logits of each pattern that leaves a model."""
    masks = allowed(case.units)
    if {"blocks", "layers"} & {case.units.granularity}:
        masks = {name: mask for name, mask in masks.items() if mask.any()}
    case.names, case.masks = list(masks), torch.stack(list(masks.values()))
    return zip(case.names, case.masks, case.logits("masked"), strict=True)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masked_sliced_and_pruned_models_are_the_same_with_and_without_a_cache(
    mixture, granularity
):
    case = case_of(mixture, granularity)
    rows = list(kept(case))
    error = case.logits("sliced") - case.logits("masked")
    assert float(error.abs().max()) <= 1e-10, case.worst(error)
    for name, mask, logits in rows:
        pruned = prune(mixture, case.units, mask)
        with torch.no_grad():
            error = pruned(case.ids).logits - logits
        assert float(error.abs().max()) <= 1e-10, name
        error = in_pieces(pruned, case.ids) - logits
        assert float(error.abs().max()) <= 1e-10, f"{name}, cached"
        removed = case.units.pruned_parameters(mask)
        assert parameters(pruned) == parameters(mixture) - removed, name


def test_bfloat16_is_hardly_less_exact_than_a_pruned_model(mixture):
    """Of most masks: where two experts are nearly equal, a token may take the other one."""
    mixture.get_input_embeddings().weight.data *= 10  # a residual stream as in trained models
    mixture.to(torch.bfloat16).to(torch.float64)
    case = case_of(mixture, "experts")
    exact = torch.stack([logits for *_, logits in kept(case)])
    half = copy.deepcopy(mixture).to(torch.bfloat16)
    with torch.no_grad():
        models = (prune(half, case.units, mask) for mask in case.masks)
        plain = torch.stack([model(case.ids).logits.double() for model in models])
    for executor in ("masked", "sliced"):
        size = case.size(case.logits(executor, torch.bfloat16) - exact).median()
        assert float(size) <= 1.5 * float(case.size(plain - exact).median())


@pytest.mark.parametrize("even", [True, False])
def test_a_reloaded_model_is_the_same_and_a_stock_one_where_counts_are_equal(
    mixture, even, tmp_path
):
    units, ids = PruningUnits.of(mixture, "experts"), tokens()
    mask = equal_layers(units, experts=3)
    if not even:
        mask[: units.shapes[0].experts] = 1
    expected = MaskedLM(copy.deepcopy(mixture), units).logits(mask[None], ids)[0]
    pruned = prune(mixture, units, mask)
    assert (type(pruned) is type(mixture)) == even
    if even:
        assert pruned.config.num_experts == 3
        assert pruned.config.num_experts_per_tok == 2
    pruned.save_pretrained(tmp_path)
    register()
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, experts_implementation="eager"
    )
    with torch.no_grad():
        error = loaded(ids).logits - expected
    assert float(error.abs().max()) <= 1e-10


def test_masks_with_fewer_experts_than_a_token_uses_are_evaluated_but_no_model(mixture):
    units, ids = PruningUnits.of(mixture, "experts"), tokens()
    masks = units.ones().repeat(3, 1)
    masks[1, :3] = 0  # one expert of layer 0
    masks[2, :4] = 0  # none
    both = [MaskedLM(mixture, units, name).losses(masks, ids) for name in ("masked", "sliced")]
    torch.testing.assert_close(*both, rtol=0, atol=1e-10)
    blocks = PruningUnits.of(mixture, "blocks")
    without = blocks.ones()
    without[1] = 0  # the MLP of layer 0
    expected = MaskedLM(mixture, blocks).losses(without[None], ids)
    torch.testing.assert_close(both[0][2:], expected, rtol=0, atol=1e-10)
    with pytest.raises(PruningError, match=r"1 experts in layer 0, but each token uses 2"):
        prune(mixture, units, masks[1])


def test_the_model_is_as_before_after_masks(mixture):
    units, before = PruningUnits.of(mixture, "experts"), copy.deepcopy(mixture.state_dict())
    router = mixture.model.layers[0].mlp.gate
    MaskedLM(mixture, units).losses(equal_layers(units, experts=2)[None], tokens())
    assert router.top_k == 2
    assert "forward" not in vars(router)
    assert all(torch.equal(before[name], part) for name, part in mixture.state_dict().items())


def test_an_expert_owns_its_matrices_and_its_row_of_the_router(mixture):
    units = PruningUnits.of(mixture, "experts")
    sparse = [layer.mlp for layer in mixture.model.layers if hasattr(layer.mlp, "experts")]
    assert units.n == 4 * len(sparse)
    assert units.prunable == sum(parameters(mlp) for mlp in sparse)
    assert set(units.active_cost.tolist()) == {32}


def test_granularities_that_do_not_fit_name_those_that_do(mixture):
    with pytest.raises(PruningError, match="mixture of experts without channels; choose heads"):
        PruningUnits.of(mixture)
    with pytest.raises(PruningError, match="has no experts; choose heads.channels"):
        PruningUnits.of(tiny_model("llama"), "heads+experts")


def test_portable_layers_are_whole_already_or_refused(mixture):
    units = PruningUnits.of(mixture, "experts")
    layers = portable_layers(mixture, units, equal_layers(units, experts=2))
    assert [layer.experts for layer in layers] == [2 * bool(s.experts) for s in units.shapes]
    blocks = PruningUnits.of(mixture, "blocks")
    mask = blocks.ones()
    mask[1] = 0
    with pytest.raises(PruningError, match="cannot fill up layers of a mixture of experts"):
        portable_layers(mixture, blocks, mask)


def test_zeros_do_not_stand_for_pruned_experts(mixture):
    units = PruningUnits.of(mixture, "experts")
    with pytest.raises(PruningError, match="would still send tokens to them"):
        zero_pruned(mixture, units, equal_layers(units, experts=2))
