"""Portable layers: each has attention and an MLP, as many servers and file formats require.

The Transformers backends of vLLM and SGLang refuse a layer without attention, and llama.cpp
miscomputes some. A layer with attention only, followed by a layer with an MLP only, equals one
whole layer of a pre-norm decoder, unless its MLP reads what attention reads (a parallel residual).
A block that is then still missing becomes a ghost: one kv group or a few channels of zeros, with
norms of ones, which adds nothing to the residual stream. Value dimensions that are pruned come back
as zeros, because all heads of a layer must be equally wide.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune.errors import PruningError
from pgprune.masking.layer_mask import columns_of_values
from pgprune.masking.units import PruningUnits
from pgprune.models.families import decoder_layers, family_of
from pgprune.models.family import Family
from pgprune.models.shapes import LayerShape
from pgprune.repair.repair import Repair
from pgprune.surgery.cuts import block_names, channel_cuts, head_cuts
from pgprune.surgery.layers import pruned_layers
from pgprune.surgery.pruned_layer import PrunedLayer, counting

GHOST_CHANNELS = 32
"""Channels of a ghost MLP, the fewest that quantised formats can pack."""


@torch.no_grad()
def portable_layers(
    model: PreTrainedModel,
    units: PruningUnits,
    mask: Tensor,
    channels: int = GHOST_CHANNELS,
    repair: Repair | None = None,
) -> list[PrunedLayer]:
    """Cuts the layers that a mask keeps out of a model, each with attention and an MLP.

    Args:
        model: a dense causal LM of a known family.
        units: its units.
        mask: (n,) of zeros and ones, 1 keeps.
        channels: of a ghost MLP, at most those of a dense layer.
        repair: of the mask.

    Raises:
        PruningError: as ``pruned_layers``; or a layer of a mixture of experts lacks a block.
    """
    family = family_of(model.config)
    types = model.config.layer_types if family.recurrent is not None else ()
    if family.experts is not None:
        return _whole(counting(types, pruned_layers(model, units, mask, repair)))
    dense = decoder_layers(model, family)
    acting = [
        _widened(_acting(layer, family), units.shapes[layer.index], family)
        for layer in pruned_layers(model, units, mask, repair)
    ]
    # A model needs at least one layer, even if none computes anything.
    kept = [layer for layer in acting if layer.weights] or acting[:1]

    def filled(layer: PrunedLayer) -> PrunedLayer:
        index = layer.index
        return _with_ghosts(layer, dense[index], units.shapes[index], family, channels)

    whole = [filled(layer) for layer in (kept if family.parallel else _merged(kept))]
    return [layer if layer.weights else filled(layer) for layer in counting(types, whole)]


def _whole(layers: list[PrunedLayer]) -> list[PrunedLayer]:
    """Returns layers of a mixture of experts, each of which must have both blocks.

    Raises:
        PruningError: one lacks a block, or heads differ in width.
    """
    if any(layer.skip or not layer.kv_heads or layer.value_dims for layer in layers):
        raise PruningError(
            "--portable cannot fill up layers of a mixture of experts, and this mask leaves one "
            "without attention, MLP or value dimensions; export without --portable"
        )
    return layers


def ghost_channels(round_to: int, channels: int) -> int:
    """Returns the number of channels of a ghost MLP.

    Args:
        round_to: the number must be a multiple of it.
        channels: of a dense layer, at least ``round_to``.
    """
    enough = -(-GHOST_CHANNELS // round_to) * round_to  # rounded up
    return min(enough, channels // round_to * round_to)


def _acting(layer: PrunedLayer, family: Family) -> PrunedLayer:
    """Removes the blocks of a layer that compute nothing, such as norms before pruned heads."""
    skip: tuple[str, ...] = ()
    for block, output, units in (
        ("attention", family.output, layer.kv_heads),
        ("mlp", family.down, layer.channels),
    ):
        # A block without units still adds its output bias, if there is one.
        if not units and f"{output}.bias" not in layer.weights:
            skip += (block,)
    prefixes = block_names(skip, family)
    weights = {name: w for name, w in layer.weights.items() if not name.startswith(prefixes)}
    return replace(layer, skip=skip, weights=weights)


def _widened(layer: PrunedLayer, shape: LayerShape, family: Family) -> PrunedLayer:
    """Gives kv heads zeros after the value dimensions that they keep."""
    if not layer.value_dims:
        return layer
    first = torch.arange(layer.kv_heads * shape.head_dim).view(-1, shape.head_dim)
    heads = zip(first, layer.value_dims, strict=True)
    values = torch.cat([rows[:kept] for rows, kept in heads])  # (r,)
    columns = columns_of_values(values.numpy(), shape.head_dim, shape.query_heads_per_group)
    size = layer.kv_heads * shape.head_dim
    weights = dict(layer.weights)
    for name in [name for name in weights if name.startswith(f"{family.value}.")]:
        rows = weights[name].new_zeros(size, *weights[name].shape[1:])
        weights[name] = rows.index_copy_(0, values.to(rows.device), weights[name])
    name = f"{family.output}.weight"
    narrow = weights[name]  # (D, queries * r)
    wide = narrow.new_zeros(len(narrow), size * shape.query_heads_per_group)
    weights[name] = wide.index_copy_(1, torch.from_numpy(columns).to(wide.device), narrow)
    return replace(layer, weights=weights, value_dims=())


def _merged(layers: list[PrunedLayer]) -> Iterator[PrunedLayer]:
    """Merges each layer with attention only and a following layer with an MLP only."""
    rest = list(layers)
    while rest:
        layer = rest.pop(0)
        if rest and layer.skip == ("mlp",) and rest[0].skip == ("attention",):
            mlp = rest.pop(0)
            weights = layer.weights | mlp.weights  # x + attention(x), then + mlp
            biases = layer.biases + mlp.biases
            layer = replace(layer, channels=mlp.channels, skip=(), weights=weights, biases=biases)
        yield layer


def _with_ghosts(
    layer: PrunedLayer, dense: nn.Module, shape: LayerShape, family: Family, channels: int
) -> PrunedLayer:
    """Adds ghosts for all parameters that a layer lacks."""
    ghosts: dict[str, Tensor] = dict(dense.named_parameters())
    first = torch.arange(1)  # kv group; where heads are unknown, all of them are one
    for cuts in (
        head_cuts(first, shape, family, dense) if family.query else (),
        channel_cuts(torch.arange(min(channels, shape.channels)), shape, family, dense),
    ):
        for name, dim, index in cuts:
            ghosts[name] = ghosts[name].index_select(dim, index.to(ghosts[name].device))
    missing = {name: ghost for name, ghost in ghosts.items() if name not in layer.weights}
    for name, ghost in missing.items():
        module, _, kind = name.rpartition(".")
        # Norms get gains of 1, as in a new model; all else is 0 and adds nothing.
        norm = kind == "weight" and not isinstance(dense.get_submodule(module), nn.Linear)
        missing[name] = torch.ones_like(ghost) if norm else torch.zeros_like(ghost)
    return replace(
        layer,
        kv_heads=layer.kv_heads or 1,
        channels=layer.channels or min(channels, shape.channels),
        skip=(),
        weights=layer.weights | missing,
    )
