"""How much the loss rises without parts of single layers."""

import math

import pytest
import torch

from helpers.tiny import AdditiveLM, masked_lm, tiny_model, tokens, toy_units
from pgprune.analysis.picture import plot_sensitivity
from pgprune.analysis.sensitivity import KEPT, kept_units, sensitivities
from pgprune.masking.units import PruningUnits


def test_the_rise_is_what_the_units_of_one_group_are_worth(heard):
    units = toy_units(layers=2, kv_heads=4, channels=8)
    worth = torch.arange(1.0, units.n + 1, dtype=torch.float64)
    found = sensitivities(AdditiveLM(units, worth), worth, tokens(3, 8))
    assert [(item.group.layer, item.group.kind) for item in found] == [
        (layer, kind) for layer in (0, 1) for kind in ("heads", "channels")
    ]
    for item in found:
        own = worth[item.group.start : item.group.stop]  # ascending: the first are pruned first
        pruned = [len(own) - kept for kept in item.kept]
        assert item.rises == pytest.approx([float(own[:count].sum()) for count in pruned])
        assert item.errors == pytest.approx([0, 0, 0], abs=1e-6)
    assert found[1].kept == [6, 4, 0]


def test_a_model_without_a_block_has_the_loss_of_that_mask():
    lm = masked_lm(tiny_model("llama"), executor="sliced")
    units, ids = lm.units, tokens(2, 9)
    found = sensitivities(lm, torch.zeros(units.n), ids)
    dense, gone = units.ones(), units.ones()
    group = found[2].group
    gone[group.start : group.stop] = 0
    expected = lm.losses(torch.stack([dense, gone]), ids).mean(1)
    assert found[2].rises[KEPT.index(0)] == pytest.approx(float(expected[1] - expected[0]))


def test_a_layer_keeps_the_experts_that_a_token_uses():
    units = PruningUnits.of(tiny_model("mixtral"), "heads+experts")
    assert [kept_units(units, group) for group in units.groups[:2]] == [[1, 1, 0], [3, 2, 2]]


@pytest.mark.usefixtures("painted")
def test_the_picture_takes_losses_that_are_not_finite(tmp_path):
    units = toy_units(layers=2)
    worth = torch.ones(units.n, dtype=torch.float64)
    worth[0] = torch.inf
    found = sensitivities(AdditiveLM(units, worth), worth, tokens(1, 8))
    assert all(math.isnan(error) for item in found for error in item.errors)  # of one window
    path = tmp_path / "sensitivity.png"
    assert plot_sensitivity(path, found, "toy")
    assert path.read_bytes().startswith(b"\x89PNG")
