"""Units: what a mask bit stands for, in which order, and how many parameters it costs."""

from dataclasses import replace

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from helpers.mixtures import MIXTURES
from helpers.tiny import CONFIGS, layers_of, projections_of, tiny_model, toy_units
from pgprune import PruningError
from pgprune.masking.units import GRANULARITIES, Group, PruningUnits
from pgprune.models.rows import FAMILIES

SMALL = BloomConfig(n_layer=1, hidden_size=8, n_head=2, vocab_size=16)


def numel(modules) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def norms_of(layer):
    """The norms over hidden states; qwen3 has two more inside its attention."""
    return [module for name, module in layer.named_children() if "norm" in name]


def test_flat_order_is_layer_by_layer_kind_by_kind():
    units = toy_units(layers=2, kv_heads=2, channels=3)
    assert units.groups == (
        Group(0, "heads", 0, 2),
        Group(0, "channels", 2, 5),
        Group(1, "heads", 5, 7),
        Group(1, "channels", 7, 10),
    )
    assert units.n == 10
    assert units.group.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert units.kind.tolist() == [0, 0, 1, 1, 1] * 2
    assert units.layer.tolist() == [0] * 5 + [1] * 5
    assert units.cost.tolist() == [7, 7, 3, 3, 3] * 2
    assert units.prunable == 46


@pytest.mark.parametrize(
    ("granularity", "sizes"),
    [
        ("heads+channels", {"heads": 2, "channels": 12}),
        ("heads", {"heads": 2}),
        ("channels", {"channels": 12}),
        ("values+channels", {"values": 16, "channels": 12}),
        ("values", {"values": 16}),
        ("blocks", {"attention": 1, "mlp": 1}),
        ("layers", {"layer": 1}),
    ],
)
def test_groups_of_each_granularity(granularity, sizes):
    units = PruningUnits.of(tiny_model("qwen2"), granularity)
    assert units.kinds == tuple(sizes) == GRANULARITIES[granularity]
    assert units.layers == 3
    assert [(g.layer, g.kind, g.stop - g.start) for g in units.groups] == [
        (layer, kind, size) for layer in range(3) for kind, size in sizes.items()
    ]


def test_heads_are_kv_groups_of_any_head_size():
    shape = PruningUnits.of(tiny_model("qwen3")).shapes[0]
    assert (shape.kv_heads, shape.query_heads_per_group, shape.head_dim) == (2, 2, 10)
    shape = PruningUnits.of(tiny_model("opt")).shapes[0]
    assert (shape.kv_heads, shape.query_heads_per_group, shape.head_dim) == (4, 1, 8)


def test_heads_and_channels_cost_all_of_a_layer_but_norms_and_output_biases(model):
    """Counts what stays if all units are pruned: norms, and the biases of output and down."""
    units = PruningUnits.of(model)
    expected = 0
    for index, layer in enumerate(layers_of(model)):
        norms = [module for name, module in layer.named_modules() if "norm" in name]
        biases = [p.bias for p in projections_of(model, index) if p.bias is not None]
        expected += numel([layer]) - numel(norms) - sum(bias.numel() for bias in biases)
    assert units.prunable == expected


def test_blocks_and_layers_cost_everything_in_the_layers(model):
    layers = layers_of(model)
    for granularity in ("blocks", "layers"):
        assert PruningUnits.of(model, granularity).prunable == numel(layers)
    assert PruningUnits.of(model, "layers").cost.tolist() == [numel([layer]) for layer in layers]
    attention, mlp = PruningUnits.of(model, "blocks").cost[:2].tolist()
    assert attention == numel([layers[0].self_attn, norms_of(layers[0])[0]])
    assert mlp == numel(layers[0:1]) - attention


def test_units_of_one_kind_cost_the_same_and_blocks_of_channels_in_proportion(model):
    single, block = PruningUnits.of(model), PruningUnits.of(model, channel_block=4)
    assert block.n == 3 * (single.groups[0].stop + 3)
    assert block.prunable == single.prunable
    assert block.cost[-1] == 4 * single.cost[-1]
    for group in single.groups:
        assert len(single.cost[group.start : group.stop].unique()) == 1


def test_a_value_dimension_costs_its_row_of_v_and_its_columns_of_o(model):
    units = PruningUnits.of(model, "values")
    shape, layer = units.shapes[0], layers_of(model)[0]
    value, output = layer.self_attn.v_proj, projections_of(model, 0)[0]
    assert units.n == 3 * value.out_features
    assert units.prunable == 3 * (numel([value]) + output.weight.numel())
    assert shape.kv_group_cost == shape.query_key_cost + shape.head_dim * shape.value_cost


def test_queries_and_keys_go_with_the_last_value_dimension_of_their_kv_head(model):
    units, shape = PruningUnits.of(model, "values+channels"), PruningUnits.of(model).shapes[0]
    mask = units.ones()
    mask[1 : shape.head_dim] = 0  # one is left of kv head 0 of layer 0
    assert units.pruned_parameters(mask) == (shape.head_dim - 1) * shape.value_cost
    mask[0] = 0
    assert units.pruned_parameters(mask) == shape.kv_group_cost


def test_kept_shares_parameters_and_prune_rate():
    units = toy_units(layers=2, kv_heads=2, channels=3)
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 0, 1, 1, 1], dtype=torch.uint8)
    shares = units.kept_shares(torch.stack([mask, units.ones()]))
    assert shares.dtype == torch.float64
    assert shares.tolist() == [[0.5, 2 / 3, 0, 1], [1, 1, 1, 1]]
    assert units.kept_parameters(mask) == 7 + 5 * 3
    assert units.prune_rate(mask) == 1 - 22 / 46
    assert units.prune_rate(units.ones()) == 0


@pytest.mark.parametrize(
    ("model", "granularity", "message"),
    [
        (BloomForCausalLM(SMALL), "heads", "'bloom'.*llama, .*mistral, .*qwen3"),
        (torch.nn.Linear(2, 2), "heads", "family None"),
        (tiny_model("opt", do_layer_norm_before=False), "heads", "opt-350m"),
        (
            tiny_model("llama"),
            "neurons",
            r"'neurons'.*heads\+channels, heads, channels, values\+channels",
        ),
    ],
)
def test_unknown_families_variants_and_granularities_are_refused(model, granularity, message):
    with pytest.raises(PruningError, match=message):
        PruningUnits.of(model, granularity)


@pytest.mark.parametrize("block", [0, -4, 5, 24])
def test_a_block_that_does_not_divide_the_channels_is_refused(block):
    with pytest.raises(PruningError, match=f"channel_block {block} .* 12 channels"):
        PruningUnits.of(tiny_model("llama"), channel_block=block)


def test_every_family_is_tested():
    assert set(FAMILIES) == set(CONFIGS | MIXTURES)


def test_kinds_that_a_family_refuses_and_heads_that_nobody_knows(monkeypatch):
    refused = {kind: "its heads are not known" for kind in ("heads", "values")}
    row = replace(FAMILIES["llama"], query="", key="", value="", refused=refused)
    monkeypatch.setitem(FAMILIES, "llama", row)
    model = tiny_model("llama")
    for granularity in ("heads", "values+channels"):
        with pytest.raises(PruningError, match="family 'llama', because its heads are not known"):
            PruningUnits.of(model, granularity)
    monkeypatch.undo()
    costs = PruningUnits.of(model, "layers").cost
    monkeypatch.setitem(FAMILIES, "llama", row)
    assert torch.equal(PruningUnits.of(model, "layers").cost, costs)
    assert PruningUnits.of(model, "channels").shapes[0].kv_heads == 1
