"""Invariants 1 and 6: masked == surgery for every family and pattern, with a cache or without."""

import copy

import pytest
import torch
from transformers import Qwen2Config

from helpers.masks import Case, case_of, patterns
from helpers.pruned import in_pieces, parameters
from helpers.tiny import CONFIGS, layers_of, masked_lm, tiny_model, tokens
from pgprune import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.families import family_of
from pgprune.surgery.layers import plan_layers, prune, zero_pruned

GRANULARITIES = ["heads+channels", "values+channels", "blocks", "layers"]


def surgeries(case: Case):
    """Name, mask and pruned model of every pattern that leaves a layer."""
    for name, mask in zip(case.names, case.masks, strict=True):
        try:
            yield name, mask, prune(case.model, case.units, mask)
        except PruningError as error:
            assert "prunes every layer" in str(error)
            assert not mask.any()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_logits_with_and_without_a_cache_and_parameters_are_those_of_the_mask(model, granularity):
    case = case_of(model, granularity)
    masked = case.logits("masked")
    expected = dict(zip(case.names, masked, strict=True))
    for name, mask, pruned in surgeries(case):
        with torch.no_grad():
            error = pruned(case.ids).logits - expected[name]
        assert float(error.abs().max()) <= 1e-10, name
        error = in_pieces(pruned, case.ids) - expected[name]
        assert float(error.abs().max()) <= 1e-10, f"{name}, cached"
        removed = case.units.pruned_parameters(mask)
        assert parameters(pruned) == parameters(model) - removed, name


def test_blocks_of_channels_and_tied_embeddings():
    model = tiny_model("llama", tie_word_embeddings=True)
    case = case_of(model, channel_block=4)
    expected = case.logits("sliced")[case.names.index("some")]
    mask = case.masks[case.names.index("some")]
    pruned = prune(model, case.units, mask)
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight
    torch.testing.assert_close(pruned(case.ids).logits, expected, rtol=0, atol=1e-10)
    assert parameters(pruned) == parameters(model) - case.units.pruned_parameters(mask)


def test_float32_is_as_exact_as_float32_can_be(model):
    case = case_of(model.to(torch.float32))
    for logits, (name, _, pruned) in zip(
        case.logits("masked", torch.float32), surgeries(case), strict=True
    ):
        assert pruned.dtype == torch.float32
        error = (pruned(case.ids).logits.detach() - logits).abs().max()
        assert float(error) <= 1e-5 * float(logits.abs().max()) + 1e-6, name


def test_bfloat16_is_hardly_less_exact_than_the_dense_model(model):
    model.get_input_embeddings().weight.data *= 10  # a residual stream as in trained models
    model.to(torch.bfloat16).to(torch.float64)
    case = case_of(model)
    exact = case.logits("masked", torch.float32)
    half = Case(copy.deepcopy(model).to(torch.bfloat16), case.units, case.ids)
    with torch.no_grad():
        logits = torch.stack([pruned(half.ids).logits.double() for *_, pruned in surgeries(half)])
    size = case.size(logits - exact)
    assert bool((size <= 1.5 * size[0]).all()), case.names[int(size.argmax())]


def test_cache_slots_are_of_the_right_kind_where_attention_types_alternate():
    """Full and sliding attention in turn: a slot of the wrong kind would forget or mismatch."""
    full, sliding = "full_attention", "sliding_attention"
    config = copy.deepcopy(CONFIGS["qwen2"]).to_dict() | {
        "num_hidden_layers": 6,
        "use_sliding_window": True,
        "sliding_window": 3,
        "layer_types": [full, sliding, full, sliding, sliding, full],
    }
    model = tiny_model("qwen2", **Qwen2Config(**config).to_dict())
    lm, ids = masked_lm(model), tokens()
    for headless in [(0,), (1,), (0, 2), (1, 3, 4), (0, 2, 5), (2, 3), (0, 1, 2), (5,)]:
        mask = lm.units.ones()
        mask[torch.isin(lm.units.layer, torch.tensor(headless)) & (lm.units.kind == 0)] = 0
        pruned = prune(model, lm.units, mask)
        error = in_pieces(pruned, ids) - lm.logits(mask[None], ids)[0]
        assert float(error.abs().max()) <= 1e-10, headless


def test_pruning_whole_layers_needs_no_code_of_ours(model):
    units = PruningUnits.of(model, "layers")
    mask = units.ones()
    mask[1] = 0
    pruned = prune(model, units, mask)
    assert type(pruned) is type(model)
    assert type(pruned.config) is type(model.config)
    assert pruned.config.num_hidden_layers == 2
    assert pruned.config.pgprune["layers"] == [0, 2]
    attention = family_of(model.config).attention
    layers = [layer.get_submodule(attention) for layer in layers_of(pruned)]
    assert [layer.layer_idx for layer in layers] == [0, 1]


def test_a_layer_whose_both_blocks_are_gone_is_gone(model):
    units = PruningUnits.of(model, "blocks")
    mask = units.ones()
    mask[units.layer == 0] = 0
    assert type(prune(model, units, mask)) is type(model)
    mask[-1] = 0
    pruned = prune(model, units, mask)
    assert pruned.config.num_hidden_layers == 2
    assert pruned.config.per_layer_config[1].skip == ["mlp"]


def test_the_dense_model_is_untouched_and_shares_nothing(model):
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    units = PruningUnits.of(model)
    pruned = prune(model, units, patterns(units)["layer 1 and some"])
    shared = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() not in shared for p in pruned.parameters() if p.numel())
    assert pruned.training is False
    for parameter in pruned.parameters():
        parameter.data.zero_()
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert model.config.to_dict() == config


def test_the_attention_kernel_can_be_changed_afterwards():
    model, ids = tiny_model("llama"), tokens()
    units = PruningUnits.of(model)
    pruned = prune(model, units, patterns(units)["layer 0 and some"])
    assert pruned.config._attn_implementation == model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        sdpa = pruned(ids).logits
        pruned.set_attn_implementation("eager")
        eager = pruned(ids, output_attentions=True)
    assert [tuple(a.shape) for a in eager.attentions if a is not None]
    torch.testing.assert_close(eager.logits, sdpa, rtol=0, atol=1e-4)  # eager softmax is float32


def test_gradients_flow():
    """Recovery trains what is left."""
    model, ids = tiny_model("qwen3"), tokens()
    units = PruningUnits.of(model)
    pruned = prune(model, units, patterns(units)["layer 1 and some"]).train()
    assert all(parameter.requires_grad for parameter in pruned.parameters())
    pruned(ids, labels=ids).loss.backward()
    assert pruned.model.layers[2].mlp.down_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("granularity", "pattern"),
    [
        ("heads+channels", "layer 1 and some"),
        ("values+channels", "the first kv head and some"),
        ("blocks", "layer 1"),
        ("layers", "layer 1"),
    ],
)
def test_zeros_in_the_dense_shapes(model, granularity, pattern):
    units, ids = PruningUnits.of(model, granularity), tokens()
    lm = MaskedLM(copy.deepcopy(model), units)
    mask = patterns(units)[pattern]
    zeros = zero_pruned(model, units, mask)
    expected = lm.logits(mask[None], ids)[0]
    torch.testing.assert_close(zeros(ids).logits, expected, rtol=0, atol=1e-10)
    if granularity.endswith("+channels"):
        left = sum(int(p.count_nonzero()) for p in zeros.parameters())
        assert left == parameters(lm.model) - units.pruned_parameters(mask)


def test_a_mask_over_other_units_is_refused():
    model = tiny_model("llama")
    units = PruningUnits.of(model)
    with pytest.raises(PruningError, match=rf"must have shape \({units.n},\), got \(5,\)"):
        prune(model, units, torch.ones(5))


def test_a_mask_that_leaves_no_layer_is_refused():
    model = tiny_model("llama")
    units = PruningUnits.of(model, "layers")
    with pytest.raises(PruningError, match="prunes every layer"):
        plan_layers(units, torch.zeros(3), family_of(model.config))
