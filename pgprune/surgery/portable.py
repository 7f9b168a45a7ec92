"""Portable layers: each with attention and an MLP, as many servers and file formats insist.

The Transformers backends of vLLM and SGLang refuse a layer without attention, and llama.cpp
miscomputes some. A layer that only attends, directly followed by one that is only an MLP, is one
whole layer of a pre-norm decoder, exactly. What is then still missing becomes a ghost: one kv group
or a few channels of zeros, with norms of ones, which adds nothing to the residual stream.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune.masking.units import LayerShape, PruningUnits
from pgprune.models.families import Family, decoder_layers, family_of
from pgprune.repair.repair import Repair
from pgprune.surgery.architecture import PrunedLayer
from pgprune.surgery.layers import block_names, channel_cuts, head_cuts, pruned_layers

GHOST_CHANNELS = 32
"""Channels of a ghost MLP: as few as quantised formats can pack."""


@torch.no_grad()
def portable_layers(
    model: PreTrainedModel,
    units: PruningUnits,
    mask: Tensor,
    channels: int = GHOST_CHANNELS,
    repair: Repair | None = None,
) -> list[PrunedLayer]:
    """The layers that a mask leaves of a model, none without attention and none without an MLP.

    Args:
        model: a dense causal LM of a known family.
        units: its units.
        mask: (n,) of zeros and ones, 1 keeps.
        channels: of a ghost MLP, at most those of a dense layer.
        repair: what comes with the mask.

    Returns:
        The layers in order; together they compute what ``surgery.pruned_layers`` do.

    Raises:
        PruningError: as ``surgery.pruned_layers``.
    """
    family = family_of(model.config)
    dense = decoder_layers(model, family)
    acting = [_acting(layer, family) for layer in pruned_layers(model, units, mask, repair)]
    some = [layer for layer in acting if layer.weights] or acting[:1]
    return [
        _with_ghosts(layer, dense[layer.index], units.shapes[layer.index], family, channels)
        for layer in _merged(some)
    ]


def ghost_channels(round_to: int, channels: int) -> int:
    """How many channels a ghost MLP has.

    Args:
        round_to: what the number must be a multiple of.
        channels: those of a dense layer, at least ``round_to``.
    """
    enough = -(-GHOST_CHANNELS // round_to) * round_to
    return min(enough, channels // round_to * round_to)


def _acting(layer: PrunedLayer, family: Family) -> PrunedLayer:
    """The layer without blocks that do nothing, such as norms before pruned heads."""
    skip: tuple[str, ...] = ()
    for block, output, units in (
        ("attention", family.output, layer.kv_heads),
        ("mlp", family.down, layer.channels),
    ):
        if not units and f"{output}.bias" not in layer.weights:
            skip += (block,)
    gone = block_names(skip, family)
    weights = {name: weight for name, weight in layer.weights.items() if not name.startswith(gone)}
    return replace(layer, skip=skip, weights=weights)


def _merged(layers: list[PrunedLayer]) -> Iterator[PrunedLayer]:
    """Makes one layer of each that only attends and a next one that is only an MLP."""
    rest = list(layers)
    while rest:
        layer = rest.pop(0)
        if rest and layer.skip == ("mlp",) and rest[0].skip == ("attention",):
            mlp = rest.pop(0)
            weights = layer.weights | mlp.weights
            biases = layer.biases + mlp.biases
            layer = replace(layer, channels=mlp.channels, skip=(), weights=weights, biases=biases)
        yield layer


def _with_ghosts(
    layer: PrunedLayer, dense: nn.Module, shape: LayerShape, family: Family, channels: int
) -> PrunedLayer:
    """The layer with ghosts for all parameters that it lacks."""
    ghosts: dict[str, Tensor] = dict(dense.named_parameters())
    for cuts in (
        head_cuts(torch.zeros(1, dtype=torch.int64), shape, family, dense),
        channel_cuts(torch.arange(min(channels, shape.channels)), shape, family, dense),
    ):
        for name, dim, index in cuts:
            ghosts[name] = ghosts[name].index_select(dim, index.to(ghosts[name].device))
    missing = {name: ghost for name, ghost in ghosts.items() if name not in layer.weights}
    for name, ghost in missing.items():
        module, _, kind = name.rpartition(".")
        norm = kind == "weight" and not isinstance(dense.get_submodule(module), nn.Linear)
        missing[name] = torch.ones_like(ghost) if norm else torch.zeros_like(ghost)
    return replace(
        layer,
        kv_heads=layer.kv_heads or 1,
        channels=layer.channels or min(channels, shape.channels),
        skip=(),
        weights=layer.weights | missing,
    )
