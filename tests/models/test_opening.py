"""Fused and transposed projections: opened once, computed as before, saved as stock weights."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from helpers.tiny import masked_lm, tiny_model, tokens
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.masking.units import PruningUnits
from pgprune.metrics import METRICS
from pgprune.models.families import decoder_layers, family_of, linear_at
from pgprune.models.rows import FAMILIES
from pgprune.models.shapes import shapes_of
from pgprune.surgery.layers import zero_pruned

FUSED = [name for name, row in FAMILIES.items() if row.fused]


@pytest.fixture(params=FUSED)
def model(request: pytest.FixtureRequest):
    return tiny_model(request.param)


def opened(model):
    decoder_layers(model, family_of(model.config))
    return model


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def assert_equal_but_for_rounding(one: torch.Tensor, other: torch.Tensor) -> None:
    """Some CPUs multiply parts of a matrix by another routine than the whole one."""
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_projections_are_plain_and_compute_what_they_did(model):
    stock, ids = copy.deepcopy(model), tokens()
    family, count = family_of(model.config), model.num_parameters()
    for layer in decoder_layers(model, family):
        for path in (family.query, family.key, family.value, family.output, family.down):
            assert type(linear_at(layer, path)) is nn.Linear
    with torch.no_grad():
        assert_equal_but_for_rounding(model(ids).logits, stock(ids).logits)
    assert model.num_parameters() == count
    before = list(model.modules())
    assert all(one is two for one, two in zip(before, opened(model).modules(), strict=True))
    assert shapes_of(model.config) == PruningUnits.of(model).shapes


def test_an_open_model_saves_and_loads_the_weights_of_a_closed_one(model, tmp_path):
    stock = copy.deepcopy(model)
    for name, each in (("closed", stock), ("open", copy.deepcopy(opened(model)))):
        each.save_pretrained(tmp_path / name)
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("closed", "open")]
    assert same(*files)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "open", dtype=torch.float64)
    assert_equal_but_for_rounding(loaded(tokens()).logits, model(tokens()).logits)
    other = {name: weight + 1 for name, weight in stock.state_dict().items()}
    model.load_state_dict(other)
    assert same(model.state_dict(), other)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


def test_gradients_reach_all_parts(model):
    opened(model).requires_grad_(True)(tokens(), labels=tokens()).loss.backward()
    assert all(bool(p.grad.any()) for name, p in model.named_parameters() if "bias" not in name)


@pytest.mark.parametrize("granularity", ["heads+channels", "values+channels"])
def test_a_unit_is_what_its_zeros_take_from_the_stock_weights(model, granularity):
    """Magnitudes of units are differences of sums over a saved model, whatever its layout."""
    lm = masked_lm(model, granularity)
    scores = METRICS["magnitude"](lm, tokens(), Budget(lm.units, 0.5), 0).scores
    whole = sum(float(weight.abs().sum()) for weight in model.state_dict().values())
    for group in lm.units.groups[:2]:
        mask = lm.units.ones()
        mask[group.stop - 1] = 0
        cut = zero_pruned(copy.deepcopy(model), lm.units, mask).state_dict()
        left = sum(float(weight.abs().sum()) for weight in cut.values())
        assert whole - left == pytest.approx(float(scores[group.stop - 1]), rel=1e-6)


@pytest.mark.parametrize("value", ["scale_attn_by_inverse_layer_idx", "add_cross_attention"])
def test_variants_of_gpt2_that_masks_cannot_describe_are_refused(value):
    model = tiny_model("gpt2")
    setattr(model.config, value, True)
    with pytest.raises(PruningError, match=f"{value}.* take another model"):
        PruningUnits.of(model)
