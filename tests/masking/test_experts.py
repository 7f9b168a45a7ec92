"""Experts as units: masked == sliced == surgery == reloaded, for every pattern and format."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.masks import Case, bound, case_of, with_enough_experts
from helpers.mixtures import MIXTURES, with_experts
from helpers.pruned import equal_layers, in_pieces, parameters
from helpers.tiny import tiny_model, tokens
from pgprune import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import GRANULARITIES as UNITS
from pgprune.masking.units import PruningUnits
from pgprune.models.families import family_of
from pgprune.models.registration import register
from pgprune.surgery.layers import prune, zero_pruned
from pgprune.surgery.portable import portable_layers

GRANULARITIES = ["experts", "experts+channels", "heads+experts", "values", "blocks", "layers"]


@pytest.fixture(params=list(MIXTURES))
def mixture(request):
    model = tiny_model(request.param)
    for buffer in (b for router in with_experts(model).values() for b in router.buffers()):
        buffer.normal_(generator=torch.Generator().manual_seed(0))  # of the choice of experts
    return model


def fits(model, granularity: str) -> bool:
    """Whether the family has units of a granularity."""
    return not set(UNITS[granularity]) & set(family_of(model.config).refused)


def kept(case: Case):
    """Name, mask and logits of each pattern that leaves a model."""
    with_enough_experts(case)
    return zip(case.names, case.masks, case.logits("masked"), strict=True)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masked_sliced_and_pruned_models_are_the_same_with_and_without_a_cache(
    mixture, granularity
):
    if not fits(mixture, granularity):
        with pytest.raises(PruningError, match="cannot be pruned in the family"):
            case_of(mixture, granularity)
        return
    case, most = case_of(mixture, granularity), bound(mixture)
    rows = list(kept(case))
    error = case.logits("sliced") - case.logits("masked")
    assert float(error.abs().max()) <= most, case.worst(error)
    for name, mask, logits in rows:
        pruned = prune(mixture, case.units, mask)
        with torch.no_grad():
            error = pruned(case.ids).logits - logits
        assert float(error.abs().max()) <= most, name
        error = in_pieces(pruned, case.ids) - logits
        assert float(error.abs().max()) <= bound(mixture, cached=True), f"{name}, cached"
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
        mask[: units.groups[min(with_experts(mixture))].stop] = 1
    expected = MaskedLM(copy.deepcopy(mixture), units).logits(mask[None], ids)[0]
    pruned = prune(mixture, units, mask)
    assert (type(pruned) is type(mixture)) == even
    if even:
        assert getattr(pruned.config, family_of(mixture.config).experts.count) == 3
        assert pruned.config.num_experts_per_tok == 2
    pruned.save_pretrained(tmp_path)
    register()
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, experts_implementation="eager"
    )
    with torch.no_grad():
        error = loaded(ids).logits - expected
    assert float(error.abs().max()) <= bound(mixture)


def test_masks_with_fewer_experts_than_a_token_uses_are_evaluated_but_no_model(mixture):
    units, ids = PruningUnits.of(mixture, "experts"), tokens()
    masks = units.ones().repeat(3, 1)
    masks[1, :3] = 0  # one expert of the first layer that has some
    masks[2, :4] = 0  # none
    both = [MaskedLM(mixture, units, name).losses(masks, ids) for name in ("masked", "sliced")]
    torch.testing.assert_close(*both, rtol=0, atol=bound(mixture))
    layer = min(with_experts(mixture))
    if mixture.config.model_type in ("qwen3_moe", "mixtral", "olmoe", "granitemoe"):
        blocks = PruningUnits.of(mixture, "blocks")
        without = blocks.ones()
        without[2 * layer + 1] = 0  # the MLP, which has nothing but experts
        expected = MaskedLM(mixture, blocks).losses(without[None], ids)
        torch.testing.assert_close(both[0][2:], expected, rtol=0, atol=bound(mixture))
    with pytest.raises(PruningError, match=rf"1 experts in layer {layer}, but each token uses 2"):
        prune(mixture, units, masks[1])


def test_the_model_is_as_before_after_masks(mixture):
    units, before = PruningUnits.of(mixture, "experts"), copy.deepcopy(mixture.state_dict())
    router = next(iter(with_experts(mixture).values()))
    MaskedLM(mixture, units).losses(equal_layers(units, experts=2)[None], tokens())
    assert (router.top_k, router.num_experts) == (2, 4)
    assert "forward" not in vars(router)
    assert all(torch.equal(before[name], part) for name, part in mixture.state_dict().items())


def test_an_expert_owns_its_matrices_and_its_row_of_the_router(mixture):
    units = PruningUnits.of(mixture, "experts")
    names, found = family_of(mixture.config).experts, with_experts(mixture)
    matrices = [mixture.model.layers[index].get_submodule(names.experts) for index in found]
    assert units.n == 4 * len(found)
    assert units.prunable == sum(map(parameters, [*found.values(), *matrices]))
    row = 32 + (mixture.config.model_type == "gpt_oss")  # with a bias
    assert set(units.active_cost.tolist()) == {row}


def test_granularities_that_do_not_fit_name_those_that_do(mixture):
    with pytest.raises(PruningError, match="is a mixture, whose channels go with experts; choose "):
        PruningUnits.of(mixture, "channels")
    with pytest.raises(PruningError, match="has no experts; choose heads.channels"):
        PruningUnits.of(tiny_model("llama"), "heads+experts")


def test_portable_layers_are_whole_already_or_refused(mixture):
    units = PruningUnits.of(mixture, "experts")
    layers = portable_layers(mixture, units, equal_layers(units, experts=2))
    assert [layer.experts for layer in layers] == [2 * bool(s.experts) for s in units.shapes]
    if not fits(mixture, "blocks"):
        return
    blocks = PruningUnits.of(mixture, "blocks")
    mask = blocks.ones()
    mask[1] = 0
    with pytest.raises(PruningError, match="cannot fill up layers of a mixture of experts"):
        portable_layers(mixture, blocks, mask)


def test_zeros_do_not_stand_for_pruned_experts(mixture):
    units = PruningUnits.of(mixture, "experts")
    with pytest.raises(PruningError, match="would still send tokens to them"):
        zero_pruned(mixture, units, equal_layers(units, experts=2))


def test_experts_of_groups_are_refused():
    model = tiny_model("deepseek_v3")
    model.config.n_group = 2
    with pytest.raises(PruningError, match=r"first chooses among 2 groups of them \(n_group\)"):
        PruningUnits.of(model, "experts")
    assert PruningUnits.of(model, "layers").n == 3
