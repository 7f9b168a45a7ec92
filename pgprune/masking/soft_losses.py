"""The loss of a frozen model as a differentiable function of a real-valued mask.

Methods that learn masks by back-propagation use it; policy gradient does not need it. The weights
stay frozen, so a backward pass computes gradients of activations only and costs about as much as a
forward pass. All activations of a batch are in memory at once, which ``MaskedLM`` never needs.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pgprune.inspection.base_model import base_model
from pgprune.losses.tokens import chunk_tokens, token_losses
from pgprune.masking.executors import multiplied
from pgprune.masking.layer_mask import LayerMask
from pgprune.masking.masked_lm import MaskedLM
from pgprune.models.families import decoder_layers, family_of


def soft_losses(
    lm: MaskedLM, mask: Tensor, input_ids: Tensor, *, chunk: int | None = None
) -> Tensor:
    """Computes the mean next-token cross-entropy of each sequence under one real-valued mask.

    The mask multiplies the inputs of the attention output and MLP down projections, the outputs of
    blocks, or the difference that a layer adds to the residual stream. At zeros and ones the losses
    are those of ``lm.losses``. ``lm.meter`` counts the batch once, and again in a backward pass.

    Args:
        lm: the frozen model.
        mask: (n,) floating point; gradients flow to it.
        input_ids: (B, T) int64.
        chunk: tokens whose logits are in memory together; None for ``chunk_tokens``.

    Returns:
        (B,) in nats, at least float32, on the model's device.
    """
    lm.meter.add(input_ids.numel())
    ids = input_ids.to(lm.device)
    with _multiplied(lm, mask):
        output = base_model(lm.model)(input_ids=ids, use_cache=False)
    hidden = output.last_hidden_state[:, :-1].flatten(0, 1)  # (B*(T-1), D)
    losses = _token_losses(lm.model, hidden, ids[:, 1:].flatten(), chunk)
    losses = losses.view(len(ids), -1).mean(dim=1).to(lm.device)  # (B,)
    if losses.requires_grad:
        losses.register_hook(lambda gradient: lm.meter.add(input_ids.numel()))
    return losses


@contextmanager
def _multiplied(lm: MaskedLM, mask: Tensor) -> Iterator[None]:
    """Multiplies by the mask in all layers while the body runs."""
    family = family_of(lm.model.config)
    with ExitStack() as stack:
        for index, layer in enumerate(decoder_layers(lm.model, family)):
            layer_mask = LayerMask(mask[None], lm.units, index, family.of(layer))
            stack.enter_context(multiplied(layer, layer_mask, _scale))
            if "layer" in layer_mask.by_kind:
                hook = partial(_scale_residual, layer_mask.by_kind["layer"][0])
                stack.callback(layer.register_forward_hook(hook).remove)
        yield


def _scale(tensor: Tensor, keep: Tensor, fill: Tensor | None) -> Tensor:
    """Multiplies by a mask (1, F), through which gradients flow."""
    return tensor * keep[0].to(tensor)


def _scale_residual(keep: Tensor, layer: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
    """Scales what a layer adds to the residual stream: x + m (layer(x) - x); keep m is (1,)."""
    after = output[0] if isinstance(output, tuple) else output
    scaled = args[0] + keep.to(after) * (after - args[0])
    return (scaled, *output[1:]) if isinstance(output, tuple) else scaled


def _token_losses(model: nn.Module, hidden: Tensor, targets: Tensor, chunk: int | None) -> Tensor:
    """Computes ``token_losses``; the backward pass recomputes the logits of several chunks."""
    vocabulary = model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    chunk = chunk or chunk_tokens(vocabulary)
    if len(targets) <= chunk:
        return token_losses(model, hidden, targets, chunk=chunk)
    losses = [
        checkpoint(token_losses, model, states, following, chunk=chunk, use_reentrant=False)
        for states, following in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(losses)
