"""Invariant 1: masked == sliced == a model whose pruned weights are gone, for every pattern."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers.masks import TRITON, WAYS, all_patterns, case_of
from helpers.tiny import VOCABULARY, masked_lm, tiny_model, tokens
from pgprune import PruningError
from pgprune.masking.executors import EXECUTORS
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits

GRANULARITIES = [
    ("heads+channels", 1),
    ("heads+channels", 4),
    ("heads", 1),
    ("channels", 1),
    ("values+channels", 4),
    ("values", 1),
    ("blocks", 1),
    ("layers", 1),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize(("granularity", "channel_block"), GRANULARITIES)
def test_logits_equal_those_of_a_model_without_the_pruned_weights(
    model, granularity, channel_block
):
    case = case_of(model, granularity, channel_block)
    expected, masked, sliced = case.reference(), case.logits("masked"), case.logits("sliced")
    for error in (masked - expected, sliced - expected, masked - sliced):
        assert float(error.abs().max()) <= 1e-10, case.worst(error)


@TRITON
@pytest.mark.parametrize(("granularity", "channel_block"), [GRANULARITIES[i] for i in (0, 1, 4)])
def test_logits_by_kernels_equal_them_too(model, granularity, channel_block):
    case = case_of(model, granularity, channel_block)
    error = case.logits("sliced", kernels="triton") - case.reference()
    assert float(error.abs().max()) <= 1e-10, case.worst(error)


def test_float32_is_as_exact_as_float32_can_be(case):
    plain = case.reference(torch.float32)
    masked, sliced = (case.logits(executor, torch.float32) for executor in EXECUTORS)
    allowed = 1e-5 * plain.abs().amax(dim=(1, 2, 3), keepdim=True) + 1e-6  # (K, 1, 1, 1)
    for error in (masked - plain, sliced - plain, masked - sliced):
        assert bool((error.abs() <= allowed).all()), case.worst(error)


@TRITON
def test_kernels_in_float32_are_too(case):
    plain = case.reference(torch.float32)
    error = case.logits("sliced", torch.float32, "triton") - plain
    allowed = 1e-5 * plain.abs().amax(dim=(1, 2, 3), keepdim=True) + 1e-6  # (K, 1, 1, 1)
    assert bool((error.abs() <= allowed).all()), case.worst(error)


@pytest.mark.parametrize(("executor", "kernels"), WAYS)
def test_bfloat16_is_hardly_less_exact_than_the_dense_model(model, executor, kernels):
    """On a residual stream that the blocks do not dominate, as in trained models."""
    model.get_input_embeddings().weight.data *= 10
    model.to(torch.bfloat16).to(torch.float64)  # the same weights in every number format
    case = case_of(model)
    size = case.size(
        case.logits(executor, torch.bfloat16, kernels) - case.logits("masked", torch.float32)
    )
    assert case.names[0] == "nothing"
    assert bool((size <= 1.5 * size[0]).all()), case.names[int(size.argmax())]


@pytest.mark.parametrize(("executor", "kernels"), WAYS)
def test_bfloat16_is_hardly_less_exact_than_a_model_without_the_pruned_weights(
    model, executor, kernels
):
    """On any residual stream."""
    model.to(torch.bfloat16).to(torch.float64)
    case = case_of(model)
    exact = case.logits("masked", torch.float32)
    size = case.size(case.logits(executor, torch.bfloat16, kernels) - exact)
    plain = case.size(case.reference(torch.bfloat16) - exact)
    assert bool((size <= 1.5 * plain).all()), case.names[int((size / plain).argmax())]


@pytest.mark.parametrize(("executor", "kernels"), WAYS)
@pytest.mark.parametrize("family", ["mistral", "qwen2", "opt"])
def test_attention_masks_that_are_spelt_out_for_every_sequence(family, executor, kernels):
    case = case_of(tiny_model(family, _attn_implementation="eager"), batch=3)
    error = case.logits(executor, kernels=kernels) - case.reference()
    assert float(error.abs().max()) <= 1e-10, case.worst(error)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_dense_mask_gives_each_sequence_its_plain_loss(model, dtype, executor):
    model, ids = model.to(dtype), tokens(batch=3)
    units = PruningUnits.of(model)
    losses = MaskedLM(model, units, executor).losses(units.ones()[None], ids)
    expected = [[float(model(row[None], labels=row[None]).loss) for row in ids]]
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert losses.shape == (1, 3)
    torch.testing.assert_close(losses.double(), torch.tensor(expected).double(), **_near(dtype))


def _near(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 0, "atol": {torch.float64: 1e-6, torch.float32: 1e-5}.get(dtype, 0.05)}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_losses_are_those_of_the_logits(model, executor):
    case = case_of(model)
    lm = MaskedLM(case.model, case.units, executor)
    logits = lm.logits(case.masks, case.ids)[:, :, :-1]  # (K, B, T-1, V)
    wanted = case.ids[:, 1:].expand(len(case.masks), -1, -1)
    expected = -logits.log_softmax(-1).gather(-1, wanted[..., None]).mean(dim=(2, 3))
    torch.testing.assert_close(lm.losses(case.masks, case.ids), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_chunks_change_nothing(executor):
    model, ids = tiny_model("llama"), tokens(batch=4, length=40)
    units = PruningUnits.of(model)
    masks = all_patterns(units)
    whole = MaskedLM(model, units, executor).losses(masks, ids)
    one_by_one = MaskedLM(model, units, executor, pass_tokens=1).losses(masks, ids)
    torch.testing.assert_close(one_by_one, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.float32])
def test_masks_of_any_type(dtype):
    lm, ids = masked_lm(tiny_model("qwen2")), tokens()
    masks = all_patterns(lm.units)
    assert torch.equal(lm.losses(masks.to(dtype), ids), lm.losses(masks, ids))


@pytest.mark.parametrize("channels", [12, 1160])  # gathered matrices end in zeros or not
@pytest.mark.parametrize(("executor", "kernels"), WAYS)
def test_an_overflow_inside_a_pruned_unit_is_gone_with_it(executor, kernels, channels):
    model, ids = tiny_model("llama", intermediate_size=channels), tokens()
    units = PruningUnits.of(model, "channels")
    model.model.layers[1].mlp.up_proj.weight.data[3] = torch.inf
    mask = units.ones()[None]
    lm = MaskedLM(model, units, executor, kernels)
    assert bool(lm.losses(mask, ids).isnan().all())
    mask[0, units.groups[1].start + 3] = 0
    assert bool(lm.losses(mask, ids).isfinite().all())


@pytest.mark.parametrize("granularity", ["heads+channels", "blocks", "layers"])
def test_a_sliced_evaluation_costs_the_kept_share_of_the_layers_and_the_head(granularity):
    model, ids = tiny_model("llama", num_hidden_layers=4), tokens()
    lm = masked_lm(model, granularity, executor="sliced")
    half = (torch.arange(lm.units.n) % 2).to(torch.uint8)
    if granularity == "blocks":
        half = (lm.units.layer % 2).to(torch.uint8)

    def operations(mask: torch.Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            lm.losses(mask[None], ids)
        return counter.get_total_flops()

    head = 2 * (ids.numel() - len(ids)) * VOCABULARY * lm.model.config.hidden_size
    dense = operations(lm.units.ones()) - head
    assert operations(half) - head == dense // 2
    assert operations(torch.zeros(lm.units.n)) == head


@pytest.mark.parametrize("executor", EXECUTORS)
def test_tokens_count_everything_that_is_asked_of_the_model_also_what_is_shared(executor):
    lm, ids = masked_lm(tiny_model("llama"), executor=executor), tokens(batch=2, length=9)
    assert lm.meter.tokens == 0
    lm.losses(torch.ones(5, lm.units.n), ids)
    assert lm.meter.tokens == 5 * 18
    for _ in lm.observe(lm.units.ones(), ids):
        pass
    assert lm.meter.tokens == 5 * 18 + 2 * 18  # each layer runs dense and masked


def test_what_is_no_mask_of_the_units_is_refused():
    lm = MaskedLM(tiny_model("llama"), toy := PruningUnits.of(tiny_model("llama")))
    for masks in (toy.ones(), torch.ones(2, toy.n + 1)):
        with pytest.raises(PruningError, match=rf"masks must have shape \(K, {toy.n}\)"):
            lm.losses(masks, tokens())


def test_an_unknown_executor_is_refused():
    model = tiny_model("llama")
    with pytest.raises(PruningError, match="executor 'fast' .* masked, sliced"):
        masked_lm(model, executor="fast")
