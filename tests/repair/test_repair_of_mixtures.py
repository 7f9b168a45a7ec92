"""Repairs of a mixture refit output projections, on what its kept experts give."""

import pytest
import torch

from helpers.mixtures import MIXTURES
from helpers.pruned import equal_layers
from helpers.tiny import masked_lm, tiny_model, tokens
from pgprune.repair.fit import fit_repair
from pgprune.repair.repair import repaired
from pgprune.surgery.layers import prune

WINDOWS = tokens(batch=24, length=16)


@pytest.mark.parametrize("family", MIXTURES)
def test_output_projections_make_up_for_pruned_experts(family):
    lm = masked_lm(tiny_model(family), "experts")
    mask = equal_layers(lm.units, experts=2)
    repair = fit_repair(lm, mask, WINDOWS, "least-squares", damping=1e-3)
    assert {kind for _, kind in repair.weights} == {"heads"}
    dense = lm.logits(lm.units.ones()[None], WINDOWS)
    before = lm.logits(mask[None], WINDOWS)
    with repaired(lm, repair):
        after = lm.logits(mask[None], WINDOWS)
    assert float((after - dense).square().mean()) < float((before - dense).square().mean())
    pruned = prune(lm.model, lm.units, mask, repair)
    with torch.no_grad():
        error = pruned(WINDOWS).logits - after[0]
    assert float(error.abs().max()) <= 1e-10


@pytest.mark.parametrize("family", MIXTURES)
def test_nothing_is_refitted_where_nothing_is_pruned(family):
    lm = masked_lm(tiny_model(family), "experts")
    assert not fit_repair(lm, lm.units.ones(), WINDOWS, "bias").biases
