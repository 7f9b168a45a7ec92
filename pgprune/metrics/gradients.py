"""Gradients of the loss with respect to the weights, for the metrics that need them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.soft_losses import soft_losses
from pgprune.models.families import decoder_layers, family_of
from pgprune.utils.progress import track


class WeightGradients:
    """Gradients of the mean calibration loss for every parameter of the decoder layers.

    The model stays as it was: no weight changes, and nothing requires a gradient. Memory beyond the
    model is one accumulator of the size of the layers in float32 (two with ``squares``), the
    largest single gradient, and the activations of a few thousand tokens (with ``squares`` of one
    window) through all layers.

    Args:
        lm: the frozen model.
        windows: calibration token ids, (N, T).
        squares: whether to compute the mean square of the gradients of single windows too, which
            takes one backward pass for each window.
        pass_tokens: tokens of a pass, whose activations stay in memory until its backward pass.
        mask: the units that are left, (n,); None for all. The others' gradients are zero.

    Attributes:
        mean: gradient of the mean loss, by parameter.
        square: mean over windows of the squared gradient, by parameter; empty without ``squares``.
    """

    def __init__(
        self,
        lm: MaskedLM,
        windows: Tensor,
        squares: bool = False,
        pass_tokens: int = 2048,
        mask: Tensor | None = None,
    ) -> None:
        layers = decoder_layers(lm.model, family_of(lm.model.config))
        parameters = list(layers.parameters())
        self.mean = {p: _accumulator(p) for p in parameters}
        self.square = {p: _accumulator(p) for p in parameters} if squares else {}
        self._share = 1.0  # of the windows that are in the pass at hand
        kept = (lm.units.ones() if mask is None else mask).float()
        together = 1 if squares else max(1, pass_tokens // windows.shape[1])
        with _differentiable(parameters), torch.enable_grad():
            hooks = [p.register_post_accumulate_grad_hook(self._take) for p in parameters]
            try:
                for batch in track(windows.split(together), "gradients", unit="batches"):
                    self._share = len(batch) / len(windows)
                    soft_losses(lm, kept, batch).mean().backward()
            finally:
                for hook in hooks:
                    hook.remove()

    def _take(self, parameter: Tensor) -> None:
        """Moves a gradient into the accumulators as soon as the backward pass has it."""
        assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
        gradient, parameter.grad = parameter.grad, None  # frees it before the next one comes
        self.mean[parameter].add_(gradient, alpha=self._share)
        if self.square:
            wide = gradient.to(self.square[parameter].dtype)
            self.square[parameter].addcmul_(wide, wide, value=self._share)


def _accumulator(parameter: nn.Parameter) -> Tensor:
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros_like(parameter, dtype=wide, requires_grad=False)


@contextmanager
def _differentiable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Makes parameters require gradients within the block."""
    before = [(p.requires_grad, p.grad) for p in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True).grad = None
    try:
        yield
    finally:
        for parameter, (required, gradient) in zip(parameters, before, strict=True):
            parameter.grad = gradient
            parameter.requires_grad_(required)
