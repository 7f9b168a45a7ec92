"""The loss of a frozen model as a differentiable function of a real-valued mask.

For the methods that learn masks by back-propagation, which is what policy gradient does without.
The weights stay frozen, so a backward pass computes the gradients of activations only and costs
about as much as the forward pass; but all activations of a batch are in memory at once, which
``MaskedLM`` never needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pgprune.masking.layer_mask import LayerMask
from pgprune.masking.masked_lm import MaskedLM
from pgprune.models.families import Family, decoder_layers, family_of
from pgprune.models.losses import LOGITS_BYTES, token_losses


def soft_losses(lm: MaskedLM, mask: Tensor, input_ids: Tensor) -> Tensor:
    """Mean next-token cross-entropy of each sequence under one mask of any real values.

    The mask multiplies what ``MaskedLM`` switches on and off: the inputs of the attention output
    and MLP down projections, the outputs of blocks, or what a layer adds to the residual stream.
    At zeros and ones the losses are those of ``lm.losses``. The batch counts once in
    ``lm.meter``, and once more when gradients flow back through it.

    Args:
        lm: the frozen model.
        mask: (n,) floating point; gradients flow to it.
        input_ids: (B, T) int64.

    Returns:
        (B,) in nats, at least float32, on the model's device.
    """
    _count(lm, input_ids)
    ids = input_ids.to(lm.device)
    with _multiplied(lm, mask):
        output = lm.model.base_model(input_ids=ids, use_cache=False)  # type: ignore[operator]
    hidden = output.last_hidden_state[:, :-1].flatten(0, 1)  # (B*(T-1), D)
    losses = _token_losses(lm.model, hidden, ids[:, 1:].flatten())
    losses = losses.view(len(ids), -1).mean(dim=1).to(lm.device)
    if losses.requires_grad:
        losses.register_hook(lambda gradient: _count(lm, input_ids))
    return losses


@contextmanager
def _multiplied(lm: MaskedLM, mask: Tensor) -> Iterator[None]:
    """Hooks that multiply by the mask, in all layers, while the body runs."""
    family = family_of(lm.model.config)
    hooks = []
    for index, layer in enumerate(decoder_layers(lm.model, family)):
        hooks += _hooks(layer, LayerMask(mask[None], lm.units, index, family), family)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(layer: nn.Module, mask: LayerMask, family: Family) -> list[Any]:
    if "layer" in mask.parts:
        return _residual_hooks(layer, mask.parts["layer"][0])
    inputs = {family.output: mask.output_columns(), family.down: mask.parts.get("channels")}
    outputs = {family.output: mask.parts.get("attention"), family.down: mask.parts.get("mlp")}
    return [
        layer.get_submodule(path).register_forward_pre_hook(
            lambda module, args, keep=keep[0]: (args[0] * keep.to(args[0]), *args[1:])
        )
        for path, keep in inputs.items()
        if keep is not None
    ] + [
        layer.get_submodule(path).register_forward_hook(
            lambda module, args, output, keep=keep[0]: output * keep.to(output)
        )
        for path, keep in outputs.items()
        if keep is not None
    ]


def _residual_hooks(layer: nn.Module, keep: Tensor) -> list[Any]:
    """Multiplies what a layer adds to the residual stream; keep is (1,)."""

    def scale(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
        whole = isinstance(output, tuple)
        after = output[0] if whole else output
        scaled = args[0] + keep.to(after) * (after - args[0])
        return (scaled, *output[1:]) if whole else scaled

    return [layer.register_forward_hook(scale)]


def _count(lm: MaskedLM, input_ids: Tensor) -> None:
    lm.meter.add(input_ids.numel())


def _token_losses(model: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """As ``token_losses``; logits of more than a chunk are computed again in the backward pass."""
    vocabulary = model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    chunk = max(64, LOGITS_BYTES // (4 * vocabulary))
    if len(targets) <= chunk:
        return token_losses(model, hidden, targets)
    parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    losses = [
        checkpoint(token_losses, model, part, wanted, use_reentrant=False) for part, wanted in parts
    ]
    return torch.cat(losses)
