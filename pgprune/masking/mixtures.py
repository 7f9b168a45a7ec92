"""Lets the MLP of a mixture run with kept experts and kept channels of them only."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pgprune.masking.kept_weights import calling
from pgprune.masking.layer_mask import LayerMask
from pgprune.models.experts import Experts, narrowed, route


def mixed(layer: nn.Module, mask: LayerMask) -> AbstractContextManager[None]:
    """Lets a layer choose among kept experts only, each with kept channels, while the body runs.

    What is pruned computes nothing.
    """
    names, keep = mask.family.experts, mask.by_kind.get("experts")
    if keep is None or names is None or not mask.shape.experts:
        return nullcontext()
    if (channels := mask.by_kind.get("channels")) is None:
        return _routed(layer, names, keep)
    mlp = layer.get_submodule(mask.family.down)
    return calling(mlp, partial(_one_by_one, mlp.forward, layer, names, keep, channels))


def _routed(layer: nn.Module, names: Experts, keep: Tensor) -> AbstractContextManager[None]:
    """Lets the router of a layer choose among what masks (K, E) keep."""
    router = names.router_of(layer)
    return calling(router, partial(route, router, router.forward, names.scored, keep))


def _one_by_one(
    forward: Callable[[Tensor], Any],
    layer: nn.Module,
    names: Experts,
    keep: Tensor,
    channels: Tensor,
    states: Tensor,
) -> Any:
    """Runs an MLP under each of K masks on its share of the states (K * N, ...).

    Args:
        forward: of the MLP as it is.
        layer: that it is in.
        names: where its experts are.
        keep: masks of experts, (K, E).
        channels: of channels, (K, F).
        states: that it gets.
    """
    outputs = []
    for experts, kept, part in zip(keep, channels.bool(), states.chunk(len(keep)), strict=True):
        whole = nullcontext() if kept.all() else narrowed(layer, names, kept.nonzero().flatten())
        with _routed(layer, names, experts[None]), whole:
            outputs.append(forward(part))
    if isinstance(outputs[0], tuple):  # beside the states, what the router says
        return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
    return torch.cat(outputs)
