"""A dense model that is lent as the pruned one."""

import copy

import pytest
import torch

from helpers.tiny import masked_lm, tiny_model, tokens
from pgprune.masking.pruned import pruned
from pgprune.surgery.layers import zero_pruned


@pytest.mark.parametrize("granularity", ["heads+channels", "blocks", "layers"])
@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_logits_are_those_of_weights_set_to_zero_bit_for_bit(family, granularity, dtype):
    model, ids = tiny_model(family, dtype), tokens()
    lm = masked_lm(model, granularity)
    mask = lm.units.ones()
    mask[:: 2 if granularity != "layers" else 3] = 0
    zeros, dense = zero_pruned(copy.deepcopy(model), lm.units, mask), model(ids).logits
    with pruned(lm, mask):
        assert torch.equal(model(ids).logits, zeros(ids).logits)
    assert torch.equal(model(ids).logits, dense), "the model is dense again"
