"""The sliced executor does no work twice, and its layout of weights changes no result."""

from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.masks import all_patterns, case_of
from helpers.tiny import FEW, layers_of, masked_lm, projections_of, tiny_model, tokens
from pgprune.masking.executors import EXECUTORS
from pgprune.masking.kept_weights import aligned, gather
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits


def agreeing(units: PruningUnits) -> torch.Tensor:
    """Masks of 3 layers: A, B as A until the last layer, C as A in layer 0, A again, D alone."""
    masks = (torch.rand(5, units.n, generator=torch.Generator().manual_seed(0)) < 0.6).byte()
    masks[1, units.layer < 2] = masks[0, units.layer < 2]
    masks[2, units.layer == 0] = masks[0, units.layer == 0]
    masks[3] = masks[0]
    return masks


def calls_of_layers(lm: MaskedLM, masks, ids) -> list[int]:
    """Counts the runs of each layer."""
    calls = Counter()
    hooks = [
        layer.register_forward_hook(lambda *args, index=index: calls.update([index]))
        for index, layer in enumerate(layers_of(lm.model))
    ]
    lm.losses(masks, ids)
    for hook in hooks:
        hook.remove()
    return [calls[index] for index in range(len(hooks))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_masks_that_share_layers_get_bit_by_bit_the_losses_they_get_alone(model, dtype):
    model, ids = model.to(dtype), tokens(batch=3)
    lm = masked_lm(model, executor="sliced")
    masks = agreeing(lm.units)
    alone = torch.cat([lm.losses(mask[None], ids) for mask in masks])
    together = lm.losses(masks, ids)
    assert torch.equal(together, alone)
    assert len(together[:, 0].unique()) == 4


@pytest.mark.parametrize("granularity", ["heads+channels", "channels", "blocks", "layers"])
def test_all_patterns_together_equal_the_masked_executor(granularity):
    model, ids = tiny_model("llama"), tokens()
    units = PruningUnits.of(model, granularity)
    masks = all_patterns(units)
    masks = torch.cat([masks, masks.flip(0)])
    masked, sliced = (MaskedLM(model, units, name).losses(masks, ids) for name in EXECUTORS)
    torch.testing.assert_close(sliced, masked, rtol=0, atol=1e-12)


def test_a_layer_runs_once_for_all_masks_that_agree_up_to_it_and_the_embedding_for_all():
    lm, ids, embedded = masked_lm(tiny_model("llama"), executor="sliced"), tokens(), []
    masks = agreeing(lm.units)
    embedding = lm.model.get_input_embeddings()
    embedding.register_forward_hook(lambda *args: embedded.append(args[2].shape))
    assert calls_of_layers(lm, masks, ids) == [2, 3, 4]  # {A B C} D, {A B} C D, A B C D
    assert embedded == [(*ids.shape, lm.model.config.hidden_size)]
    assert calls_of_layers(lm, masks[[0, 3, 0, 0]], ids) == [1, 1, 1]
    assert calls_of_layers(lm, masks[[0, 4]], ids) == [2, 2, 2]


@pytest.fixture(params=FEW)
def wide(request):
    """A model of each family whose MLPs are so wide that gathered matrices end in zeros."""
    return tiny_model(request.param, **dict.fromkeys(("intermediate_size", "ffn_dim"), 1160))


def test_wide_matrices_fill_cache_lines_and_narrow_ones_stay_as_they_are():
    assert [aligned(count, torch.float32) for count in (0, 255, 256, 1029)] == [0, 255, 256, 1040]
    assert [aligned(count, torch.bfloat16) for count in (511, 512, 1029)] == [511, 512, 1056]


def test_gathered_rows_end_in_zeros():
    rows = torch.arange(1.0, 9).view(4, 2)
    assert gather(rows, torch.tensor([1, 3]), 3).tolist() == [[3, 4], [7, 8], [0, 0]]


def test_rows_of_zeros_change_nothing(wide):
    case = case_of(wide)
    error = case.logits("sliced") - case.reference()
    assert float(error.abs().max()) <= 1e-10, case.worst(error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_zeros_cost_no_exactness(wide, dtype):
    case = case_of(wide.to(torch.bfloat16).to(torch.float64))
    exact = case.logits("masked", torch.float64)
    size = case.size(case.logits("sliced", dtype) - exact)
    plain = case.size(case.reference(dtype) - exact)
    assert bool((size <= 1.5 * plain).all()), case.names[int((size / plain).argmax())]


def test_a_model_that_is_laid_out_is_the_same_model(model, tmp_path):
    ids = tokens()
    plain, weights = model(ids).logits, {k: v.clone() for k, v in model.state_dict().items()}
    size = sum(p.untyped_storage().nbytes() for p in model.parameters())
    masked_lm(model, executor="sliced")
    for projection in projections_of(model, 1):
        assert projection.weight.t().is_contiguous()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert sum(p.untyped_storage().nbytes() for p in model.parameters()) == size
    torch.testing.assert_close(model(ids).logits, plain, rtol=0, atol=1e-12)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(loaded(ids).logits, plain, rtol=0, atol=1e-12)
