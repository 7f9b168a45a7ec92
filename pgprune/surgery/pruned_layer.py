"""One layer of a pruned model, and the values of a configuration that belong to layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits
from pgprune.models.family import Family

COUNTING = "full_attention"
"""The type of layer whose cache counts the tokens of a text, where others are recurrent."""


@dataclass(frozen=True)
class PrunedLayer:
    """One layer of a pruned model.

    Attributes:
        index: of the layer in the dense model; of two merged layers, the one with attention.
        kv_heads: number of kv heads, 0 if none is kept.
        channels: number of MLP channels, 0 if none is kept.
        skip: the blocks that are pruned with their norms: of ``attention`` and ``mlp``.
        weights: copies of the weights, by their names in a stock layer.
        biases: projections that have a bias here and none in the dense model.
        value_dims: how many value dimensions each kv head keeps; empty if all keep all.
        experts: number of experts, 0 in a layer without them.
    """

    index: int
    kv_heads: int
    channels: int
    skip: tuple[str, ...]
    weights: dict[str, Tensor]
    biases: tuple[str, ...] = ()
    value_dims: tuple[int, ...] = ()
    experts: int = 0


def counting(types: Sequence[str], layers: list[PrunedLayer]) -> list[PrunedLayer]:
    """Puts a layer of nothing, which counts the tokens of a text, where no kept layer does.

    Args:
        types: of the layers of the dense model.
        layers: that are kept, in order.
    """
    counts = ("attention" in layer.skip or types[layer.index] == COUNTING for layer in layers)
    if COUNTING not in types or any(counts):
        return layers
    empty = PrunedLayer(types.index(COUNTING), 0, 0, ("attention", "mlp"), {})
    return sorted([*layers, empty], key=lambda layer: layer.index)


def counting_types(types: Sequence[str], layers: list[PrunedLayer]) -> list[str]:
    """Gives layers without attention the type of those whose caches count tokens."""
    pairs = zip(types, layers, strict=True)
    return [COUNTING if "attention" in layer.skip else own for own, layer in pairs]


def kept_values(
    own: Mapping[str, dict[str, Any]], kept: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """Returns the values that a dense configuration has for single layers, for the kept ones."""
    by_index = {int(old): values for old, values in own.items()}
    return {new: by_index[old] for new, old in enumerate(kept) if old in by_index}


def layers_with_experts(
    dense: PretrainedConfig, units: PruningUnits, layers: list[PrunedLayer], family: Family
) -> dict[str, Any]:
    """Returns the configuration values that say which layers have experts."""
    names = family.experts
    if names is None:
        return {}
    mixed = [new for new, layer in enumerate(layers) if units.shapes[layer.index].experts]
    plain = [new for new in range(len(layers)) if new not in mixed]
    if names.moe_layers is not None:
        return {names.moe_layers: mixed}
    if names.first_dense is not None:
        return {names.first_dense: len(plain)}
    if names.dense_layers is None or names.step is None:
        return {}
    return {names.dense_layers: plain, names.step: 1}


def overrides_of(
    layer: PrunedLayer, units: PruningUnits, dense: PretrainedConfig, family: Family
) -> dict[str, Any]:
    """Returns the values of one layer that differ from the dense ones, by configuration key."""
    shape = units.shapes[layer.index]
    values: dict[str, Any] = {"skip": list(layer.skip)} if layer.skip else {}
    if "attention" not in layer.skip and layer.kv_heads != shape.kv_heads:
        values["num_attention_heads"] = layer.kv_heads * shape.query_heads_per_group
        if hasattr(dense, "num_key_value_heads"):  # OPT has none: a kv head is a head
            values["num_key_value_heads"] = layer.kv_heads
    if "mlp" not in layer.skip and layer.channels != shape.channels:
        if not family.channel_count:
            raise PruningError(
                f"no entry of a {dense.model_type!r} configuration is the width of its MLPs, so "
                "none can be narrower; use --granularity layers, or --format masked"
            )
        values |= {family.channel_count: layer.channels, **family.own_width}
    if family.experts is not None and "mlp" not in layer.skip and layer.experts != shape.experts:
        values[family.experts.count] = layer.experts
    if layer.biases:
        values["biases"] = list(layer.biases)
    if layer.value_dims:
        values["value_dims"] = list(layer.value_dims)
    return values
