"""Portable layers: the logits of the mask, though no layer lacks attention or an MLP."""

import json
from dataclasses import replace

import pytest
import torch

from helpers.finished_run import assert_close, finished_run, logits, numbers, run_of_pattern
from helpers.masks import case_of, patterns
from helpers.pruned import in_pieces, parameters
from helpers.tiny import layers_of, tiny_model, tokens
from pgprune import PruningError
from pgprune.export.export import ExportConfig, export
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.families import family_of
from pgprune.surgery.architecture import assemble
from pgprune.surgery.cuts import block_names
from pgprune.surgery.layers import prune
from pgprune.surgery.portable import ghost_channels, portable_layers
from pgprune.surgery.pruned_layer import PrunedLayer

GHOST = 2  # channels, of 12


def blocks(model, *kept: str) -> tuple[PruningUnits, torch.Tensor]:
    """A mask over blocks, spelt layer by layer: a keeps the attention, m the MLP."""
    units = PruningUnits.of(model, "blocks")
    bits = [name in layer for layer in kept for name in "am"]
    return units, torch.tensor(bits, dtype=torch.uint8)


def sizes(layers: list[PrunedLayer]) -> list[tuple[int, int, int]]:
    return [(layer.index, layer.kv_heads, layer.channels) for layer in layers]


@pytest.mark.parametrize("granularity", ["heads+channels", "values+channels", "blocks"])
def test_logits_with_and_without_a_cache_are_those_of_the_mask(model, granularity):
    case = case_of(model, granularity)
    for name, mask, expected in zip(case.names, case.masks, case.logits("masked"), strict=True):
        if granularity == "blocks" and not mask.any():
            continue  # no layer is left
        layers = portable_layers(model, case.units, mask, GHOST)
        portable = assemble(model, case.units, layers)
        with torch.no_grad():
            error = portable(case.ids).logits - expected
        assert float(error.abs().max()) <= 1e-10, name
        error = in_pieces(portable, case.ids) - expected
        assert float(error.abs().max()) <= 1e-10, f"{name}, cached"
        assert all(layer.kv_heads and layer.channels and not layer.skip for layer in layers), name
        names = {name for name, _ in layers_of(model)[0].named_parameters()}
        assert all(layer.weights.keys() == names for layer in layers), name


def test_layers_of_different_attention_types_keep_theirs():
    full, sliding = "full_attention", "sliding_attention"
    types = {"use_sliding_window": True, "sliding_window": 3, "layer_types": [full, sliding, full]}
    model = tiny_model("qwen2", **types)
    units, mask = blocks(model, "m", "a", "m")
    portable = assemble(model, units, portable_layers(model, units, mask, GHOST))
    assert portable.config.layer_types == [full, sliding]
    expected = MaskedLM(model, units).logits(mask[None], tokens())[0]
    assert_close(in_pieces(portable, tokens()), expected)


def test_attention_and_the_mlp_of_the_next_layer_become_one_layer(model):
    units, mask = blocks(model, "a", "m", "am")
    layers = portable_layers(model, units, mask, GHOST)
    heads, channels = units.shapes[0].kv_heads, units.shapes[0].channels
    assert sizes(layers) == [(0, heads, channels), (2, heads, channels)]
    portable = assemble(model, units, layers)
    assert type(portable) is type(model)  # nothing is left that a stock model lacks
    assert parameters(portable) == parameters(model) - units.pruned_parameters(mask)


def test_an_mlp_and_the_attention_of_the_next_layer_stay_two(model):
    units, mask = blocks(model, "m", "a", "am")
    layers = portable_layers(model, units, mask, GHOST)
    heads, channels = units.shapes[0].kv_heads, units.shapes[0].channels
    assert sizes(layers) == [(0, 1, channels), (1, heads, GHOST), (2, heads, channels)]
    config = assemble(model, units, layers).config
    assert not any(getattr(config.per_layer_config[i], "skip", None) for i in range(3))


def test_each_layer_is_merged_only_once(model):
    units, mask = blocks(model, "a", "a", "m")
    heads, channels = units.shapes[0].kv_heads, units.shapes[0].channels
    layers = portable_layers(model, units, mask, GHOST)
    assert sizes(layers) == [(0, heads, GHOST), (1, heads, channels)]


def test_ghosts_are_zeros_behind_norms_of_ones(model):
    units, mask = blocks(model, "m", "a", "am")
    no_attention, no_mlp, _ = portable_layers(model, units, mask, GHOST)
    family = family_of(model.config)
    for layer, block in ((no_attention, "attention"), (no_mlp, "mlp")):
        names = [n for n in layer.weights if n.startswith(block_names((block,), family))]
        assert names
        for name in names:
            one = "norm" in name and name.endswith("weight")
            assert bool((layer.weights[name] == (1 if one else 0)).all()), name


def test_layers_that_do_nothing_are_left_out():
    """Without output biases a layer without heads and channels is its residual stream alone."""
    model = tiny_model("mistral")
    units = PruningUnits.of(model)
    mask = (units.layer != 1).to(torch.uint8)
    assert prune(model, units, mask).config.num_hidden_layers == 3  # norms are no units
    portable = assemble(model, units, portable_layers(model, units, mask))
    assert type(portable) is type(model)
    assert portable.config.num_hidden_layers == 2


def test_one_layer_is_left_of_nothing_and_biases_that_still_act_are_kept():
    for family, left in (("qwen3", 1), ("llama", 3)):
        model = tiny_model(family)
        units = PruningUnits.of(model)
        layers = portable_layers(model, units, torch.zeros(units.n), GHOST)
        assert sizes(layers) == [(index, 1, GHOST) for index in range(left)]
    layer = layers[0]
    dense = layers_of(model)[0]
    assert torch.equal(layer.weights["self_attn.o_proj.bias"], dense.self_attn.o_proj.bias)
    assert torch.equal(layer.weights["mlp.down_proj.bias"], dense.mlp.down_proj.bias)
    assert not layer.weights["self_attn.o_proj.weight"].any()


@pytest.mark.parametrize(
    ("round_to", "channels", "expected"),
    [(1, 11008, 32), (8, 11008, 32), (24, 11008, 48), (64, 172, 64), (1, 12, 12), (5, 12, 10)],
)
def test_ghosts_have_as_many_channels_as_rounding_allows(round_to, channels, expected):
    assert ghost_channels(round_to, channels) == expected


@pytest.mark.parametrize("name", ["layer 0 and some", "all heads of layer 1"])
def test_the_round_trip(model, name, tmp_path):
    units = PruningUnits.of(model)
    mask = patterns(units)[name]
    run = finished_run(tmp_path, model, units, mask)
    folder = export(run, ExportConfig(portable=True))
    expected = MaskedLM(model, units).logits(mask[None], tokens())[0]
    assert_close(logits(folder), expected)
    config = json.loads((folder / "config.json").read_text())
    for own in config["per_layer_config"].values():
        assert "skip" not in own
        assert all(value > 0 for value in own.values())
    layers = portable_layers(model, units, mask, 12)
    assert numbers(folder) == parameters(assemble(model, units, layers))
    card = (folder / "README.md").read_text()
    assert "Portable: no layer lacks attention or MLP" in card
    assert f"holds {numbers(folder):,} parameters instead of" in card


def test_portable_is_for_the_format_hf(tmp_path):
    run = run_of_pattern(tmp_path, "nothing")
    with pytest.raises(PruningError, match="no layer of format masked lacks a block"):
        export(run, replace(ExportConfig(), portable=True, format="masked"))
