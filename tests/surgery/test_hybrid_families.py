"""Families with layers of several kinds: recurrent states, shared keys and values, other sizes."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.masks import bound
from helpers.pruned import equal_layers, in_pieces, parameters
from helpers.tiny import CONFIGS, tiny_model, tokens
from pgprune import PruningError
from pgprune.finetuning.blocks import Blocks
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.families import family_of
from pgprune.models.weight_files import check_weights
from pgprune.surgery.architecture import assemble
from pgprune.surgery.layers import prune
from pgprune.surgery.portable import portable_layers

HYBRID = ("qwen3_5_text", "qwen3_next", "qwen3_5_moe_text")


def mask_without(units: PruningUnits, kind: str, layers: set[int]) -> torch.Tensor:
    """A mask that prunes one kind of unit in some layers."""
    gone = torch.zeros(units.n, dtype=torch.bool)
    for group in units.groups:
        gone[group.start : group.stop] = group.kind == kind and group.layer in layers
    return (~gone).byte()


@pytest.mark.parametrize("family", HYBRID)
@pytest.mark.parametrize(
    ("granularity", "kind", "layers"),
    [
        ("blocks", "attention", {0}),
        ("blocks", "attention", {1, 2}),
        ("blocks", "attention", {0, 1, 2}),
        ("layers", "layer", {1, 2}),
    ],
)
@torch.no_grad()
def test_a_model_without_attention_still_counts_tokens(family, granularity, kind, layers, tmp_path):
    """Caches take the text's length from layers of full attention, of which layer 1 and 2 are."""
    model, ids = tiny_model(family), tokens(batch=2)
    units = PruningUnits.of(model, granularity)
    mask = mask_without(units, kind, layers)
    expected = MaskedLM(model, units).logits(mask[None], ids)[0]
    pruned = prune(model, units, mask)
    assert parameters(pruned) == parameters(model) - units.pruned_parameters(mask)
    pruned.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, experts_implementation="eager"
    )
    check_weights(tmp_path, loaded.config)  # as in every loading by pgprune
    for logits in (loaded(ids).logits, in_pieces(loaded, ids)):
        assert float((logits - expected).abs().max()) <= bound(model, cached=True)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), ids], dim=1)
    seen = torch.ones_like(padded)
    seen[:, :3] = 0
    written = [
        loaded.generate(each, attention_mask=m, max_new_tokens=6, pad_token_id=0, use_cache=use)
        for each, m, use in (
            (ids, torch.ones_like(ids), True),
            (ids, torch.ones_like(ids), False),
            (padded, seen, True),
        )
    ]
    assert torch.equal(written[0], written[1])
    assert torch.equal(written[0], written[2][:, 3:])


@pytest.mark.parametrize(("kind", "layers"), [("attention", {0}), ("layer", {1, 2})])
@torch.no_grad()
def test_portable_layers_of_a_hybrid_count_tokens_too(kind, layers):
    model, ids = tiny_model("qwen3_5_text"), tokens()
    units = PruningUnits.of(model, "layers" if kind == "layer" else "blocks")
    mask = mask_without(units, kind, layers)
    expected = MaskedLM(model, units).logits(mask[None], ids)[0]
    whole = portable_layers(model, units, mask)
    assert not any(layer.skip for layer in whole)
    portable = assemble(model, units, whole)
    for logits in (portable(ids).logits, in_pieces(portable, ids)):
        assert float((logits - expected).abs().max()) <= bound(model, cached=True)


OWN = {"num_kv_shared_layers": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1}


@pytest.mark.parametrize("changes", [{}, OWN, OWN | {"hidden_size_per_layer_input": 0}])
def test_equal_channels_are_a_stock_model_where_dense_layers_differ(changes, tmp_path):
    model, ids = gemma4(**changes), tokens()
    units = PruningUnits.of(model, "channels")
    mask = equal_layers(units, channels=6)
    expected = MaskedLM(copy.deepcopy(model), units).logits(mask[None], ids)[0]
    pruned = prune(model, units, mask)
    assert type(pruned) is type(model) and pruned.config.intermediate_size == 6
    pruned.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    for logits in (loaded(ids).logits, in_pieces(loaded, ids)):
        torch.testing.assert_close(logits, expected, rtol=0, atol=bound(model))


def gemma4(**changes):
    """A tiny Gemma 4 with other values, which its configuration makes others of."""
    values = CONFIGS["gemma4_text"].to_dict() | changes
    config = type(CONFIGS["gemma4_text"])(**values)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


def test_gemma_4_with_experts_is_refused():
    config = copy.deepcopy(CONFIGS["gemma4_text"])
    config.enable_moe_block = True
    with pytest.raises(PruningError, match="Gemma 4 with experts beside the MLP"):
        family_of(config)


@pytest.mark.parametrize("granularity", ["heads+channels", "values", "blocks", "layers"])
def test_units_of_gemma_4_that_are_refused(granularity):
    with pytest.raises(PruningError, match="cannot be pruned in the family 'gemma4_text', because"):
        PruningUnits.of(tiny_model("gemma4_text"), granularity)


def test_layers_that_are_more_than_their_blocks_are_not_fitted_block_by_block():
    with pytest.raises(PruningError, match="more than their attention and MLP, .* without --local"):
        Blocks(tiny_model("gemma4_text"), torch.no_grad)
