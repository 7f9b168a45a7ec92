"""What the projections of a plain Hugging Face model read."""

from functools import partial

import torch
from torch import nn

from helpers.tiny import layers_of, projections_of


@torch.no_grad()
def inputs_of(model: nn.Module, ids: torch.Tensor) -> dict[tuple[int, str], torch.Tensor]:
    """Inputs of the output and down projections by layer and kind, each (B, T, inputs)."""
    seen: dict[tuple[int, str], torch.Tensor] = {}
    hooks = []
    for layer in range(len(layers_of(model))):
        for kind, linear in zip(("heads", "channels"), projections_of(model, layer), strict=True):

            def note(_: nn.Module, args: tuple[torch.Tensor], key: tuple[int, str]) -> None:
                seen[key] = args[0].reshape(*ids.shape, -1)

            hooks.append(linear.register_forward_pre_hook(partial(note, key=(layer, kind))))
    model(ids)
    for hook in hooks:
        hook.remove()
    return seen
