"""``--family auto``: what is found in architectures without a row is proven, exact or refused."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.tiny import tokens
from helpers.unlisted import NOTHING, UNLISTED, proven, unlisted_model
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.pruned import check_masks
from pgprune.masking.units import GRANULARITIES, PruningUnits
from pgprune.models import families
from pgprune.models.discovery import discover, settle_family
from pgprune.models.proof import KINDS, prove
from pgprune.surgery.layers import prune


@pytest.fixture(autouse=True)
def unlisted(monkeypatch):
    """No row of the architectures is listed, whatever others add, and none was found before."""
    monkeypatch.setattr(families, "_FOUND", {})
    for model_type in {*UNLISTED, *NOTHING}:
        monkeypatch.delitem(families.FAMILIES, model_type, raising=False)


def uniform_mask(units: PruningUnits) -> torch.Tensor:
    """A random mask that a stock architecture can hold."""
    scope = "global" if units.granularity == "layers" else "uniform"
    scores = torch.rand(units.n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Budget(units, 0.4, scope=scope).round(scores)


def parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model_type", "granularity"),
    [(name, granularity) for name, found in UNLISTED.items() for granularity in found.exact],
)
@torch.no_grad()
def test_masked_sliced_cut_and_loaded_models_agree(model_type, granularity, tmp_path):
    model = unlisted_model(model_type)
    families.add_found(model_type, proven(model_type))
    units = PruningUnits.of(model, granularity)
    mask, ids = uniform_mask(units), tokens()
    masked, sliced = (
        MaskedLM(model, units, executor).logits(mask[None], ids)[0]
        for executor in ("masked", "sliced")
    )
    smaller = prune(model, units, mask)
    smaller.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert parameters(loaded) == parameters(model) - units.pruned_parameters(mask)
    for logits in (sliced, smaller(ids).logits, loaded(ids).logits):
        torch.testing.assert_close(logits, masked, rtol=0, atol=1e-6)  # norms are float32
    assert float((masked - model(ids).logits).abs().max()) > 0.01


@pytest.mark.parametrize("granularity", ["channels", "values+channels", "blocks"])
@pytest.mark.parametrize("model_type", ["starcoder2", "cohere", "persimmon", "falcon", "gptj"])
@torch.no_grad()
def test_layers_that_differ_are_exact_or_refused(model_type, granularity):
    model, row = unlisted_model(model_type), proven(model_type)
    families.add_found(model_type, row)
    if set(GRANULARITIES[granularity]) & set(row.refused):
        pytest.skip("refused, as another test shows")
    units = PruningUnits.of(model, granularity)
    for seed in range(3):
        mask = (torch.rand(units.n, generator=torch.Generator().manual_seed(seed)) > 0.4).byte()
        expected = MaskedLM(model, units).logits(mask[None], tokens())[0]
        smaller = prune(model, units, mask)
        assert parameters(smaller) == parameters(model) - units.pruned_parameters(mask)
        torch.testing.assert_close(smaller(tokens()).logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model_type", "granularity", "reason"),
    [
        (name, granularity, reason)
        for name, found in UNLISTED.items()
        for granularity, reason in found.refused.items()
    ],
)
def test_what_is_not_proven_is_refused_with_the_reason(model_type, granularity, reason):
    model = unlisted_model(model_type)
    families.add_found(model_type, proven(model_type))
    with pytest.raises(PruningError) as error:
        units = PruningUnits.of(model, granularity)
        check_masks(MaskedLM(model, units))
        prune(model, units, uniform_mask(units))
    assert reason in str(error.value)


@pytest.mark.parametrize("model_type", NOTHING)
def test_a_model_of_which_nothing_is_proven(model_type):
    with pytest.raises(PruningError, match=f"'x' of the family '{model_type}' cannot be") as error:
        settle_family("x", unlisted_model(model_type), "auto")
    assert NOTHING[model_type] in str(error.value)


def test_layers_that_differ_where_no_class_is_made_for_them():
    model = unlisted_model("biogpt")
    families.add_found("biogpt", proven("biogpt"))
    units = PruningUnits.of(model, "channels")
    mask = units.ones()
    mask[0] = 0
    with pytest.raises(PruningError, match="nor one whose layers differ can be built .*--uniform"):
        prune(model, units, mask)


def test_attention_that_adds_the_residual_itself_is_caught_by_the_masks():
    model = unlisted_model("bloom")
    families.add_found("bloom", proven("bloom"))
    with pytest.raises(PruningError, match="do not compute what the model does without their"):
        check_masks(MaskedLM(model, PruningUnits.of(model, "blocks")))


def test_logits_that_are_not_those_of_the_head_are_refused():
    model = copy.deepcopy(unlisted_model("olmo"))
    families.add_found("olmo", proven("olmo"))
    lm = MaskedLM(model, PruningUnits.of(model, "layers"))
    check_masks(lm)

    def scale(module, args, output):
        output.logits *= 1.5
        return output

    model.register_forward_hook(scale)
    with pytest.raises(PruningError, match="'olmo' are not those of its head on its last hidden"):
        check_masks(lm)


@pytest.mark.parametrize(
    ("wrong", "kinds"),
    [
        ({"down": "self_attn.o_proj"}, {"channels", "mlp"}),
        ({"expand": ("self_attn.q_proj",)}, {"channels"}),
        ({"output": "mlp.c_proj"}, {"heads", "attention"}),
        ({"key": "self_attn.v_proj", "value": "self_attn.k_proj"}, {"values"}),
        ({"value": "self_attn.q_proj"}, {"heads"}),
        ({"attention_norms": ("post_attention_layernorm",)}, {"attention"}),
        ({"mlp_norms": ("input_layernorm",)}, {"mlp"}),
        ({"down": "mlp.nothing"}, {"channels", "mlp"}),
    ],
)
def test_a_wrong_row_is_refused(wrong, kinds):
    """All projections have the same shape, so that only what they compute tells them apart."""
    sizes = {"intermediate_size": 32, "num_key_value_heads": 4}
    model = unlisted_model("starcoder2", **sizes)
    row = discover(model)
    assert not prove(model, row).refused
    refused = prove(model, replace(row, **wrong)).refused
    assert kinds <= set(refused)
    assert "layer" not in refused


def test_a_gate_whose_rows_are_permuted_is_refused():
    model = copy.deepcopy(unlisted_model("exaone4"))
    row = discover(model)
    gate = model.model.layers[1].mlp.gate_proj
    gate.register_forward_hook(lambda module, args, output: output.roll(1, dims=-1))
    refused = prove(model, row).refused
    assert "mlp.gate_proj, mlp.up_proj do more than mlp.down_proj reads" in refused["channels"]
    assert "(layer 1)" in refused["channels"]
    assert set(refused) == {"channels"}


def test_heads_whose_queries_are_elsewhere_are_refused():
    model = copy.deepcopy(unlisted_model("exaone4"))
    query = model.model.layers[0].self_attn.q_proj
    query.register_forward_hook(lambda module, args, output: output.roll(16, dims=-1))
    assert set(prove(model, discover(model)).refused) == {"heads", "values"}


def test_layers_that_differ_and_a_model_that_sees_what_comes():
    model = copy.deepcopy(unlisted_model("olmo"))
    model.model.layers[1].mlp.up_proj.bias = torch.nn.Parameter(torch.zeros(24).double())
    with pytest.raises(PruningError, match="layers 0 and 1 differ, such as in mlp.up_proj.bias"):
        discover(model)
    model = copy.deepcopy(unlisted_model("olmo"))
    projection = model.model.layers[0].self_attn.o_proj
    projection.register_forward_hook(lambda module, args, output: output + output.mean(1, True))
    with pytest.raises(PruningError, match="a token changes what comes before it"):
        prove(model, discover(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_number_formats_prove_the_same(dtype):
    model = copy.deepcopy(unlisted_model("stablelm")).to(dtype)
    settle_family("stablelm", model, "auto")
    units = PruningUnits.of(model, "channels")
    check_masks(MaskedLM(model, units))
    prune(model, units, uniform_mask(units))


def test_a_row_is_of_one_layout_in_a_process_and_may_be_another_familys():
    model = unlisted_model("ernie4_5")
    settle_family("x", model, "llama")
    assert families.family_of(model.config).refused == {}
    with pytest.raises(PruningError, match="has loaded another model of this family that is built"):
        settle_family("x", model, "auto")
    families._FOUND.clear()
    with pytest.raises(PruningError, match="FalconForCausalLM has no attribute"):
        settle_family("x", unlisted_model("falcon"), "llama")


def test_every_kind_of_unit_is_proven_or_refused():
    known = {kind for kinds in GRANULARITIES.values() for kind in kinds} - {"experts"}
    assert known == set(KINDS)
