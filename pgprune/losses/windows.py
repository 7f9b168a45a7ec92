"""Perplexity from the losses of windows: how sure it is, and how many windows are enough.

The mean loss of N windows has the standard error s / sqrt(N), where s is the standard deviation of
their losses; the perplexity, its exponential, has that share of itself as standard error. So masks
that are compared need less text than each of them alone: they read the same windows, and what
differs between windows cancels in the difference of their losses.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune.losses.tokens import sequence_losses
from pgprune.utils.progress import phase

STANDARD_ERROR = 0.01
"""Of the mean loss, and so the share of the perplexity, at which windows are enough."""

FEWEST_WINDOWS = 32
"""Fewer do not tell how much windows differ."""


_CALL_TOKENS = 1024


class Perplexity(NamedTuple):
    """A perplexity and its standard error over windows, in the same unit."""

    value: float
    error: float


def perplexity_of(losses: Tensor) -> Perplexity:
    """Computes exp of the mean loss of windows of one length, (N,) float64.

    Returns:
        The perplexity, NaN if any loss is, and inf where it overflows; its error is NaN for a
        single window.
    """
    value = float(losses.mean().exp())
    error = float(losses.std()) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan
    return Perplexity(value, value * error)


def windows_needed(losses: Tensor) -> int:
    """Estimates from losses (N,) how many windows have a mean within ``STANDARD_ERROR``."""
    variance = float(losses.var()) if len(losses) > 1 else math.inf
    # More windows do not make a loss finite.
    needed = variance / STANDARD_ERROR**2 if math.isfinite(variance) else 0
    return max(FEWEST_WINDOWS, math.ceil(needed))


def window_losses(
    compute: Callable[[Tensor], Tensor],
    windows: Tensor,
    batch_size: int | None = None,
    *,
    until_sure: bool = False,
    label: str = "perplexity",
) -> Tensor:
    """Computes the losses of windows, batch by batch.

    Args:
        compute: takes token ids (B, T) and returns losses, (K, B).
        windows: token ids, (N, T) int64.
        batch_size: windows of one call; None for 8, or fewer long ones.
        until_sure: whether the first windows are enough whose losses under the first of the K
            masks have a mean within ``STANDARD_ERROR``.
        label: what is shown meanwhile.

    Returns:
        (K, N) float64 on the CPU, or of fewer windows with ``until_sure``.
    """
    # Long windows one by one: memory grows with the tokens of a call.
    batch_size = batch_size or min(8, max(1, _CALL_TOKENS // windows.shape[1]))
    found: list[Tensor] = []  # each (K, B)
    with phase(label, len(windows), "windows") as work:
        for ids in windows.split(batch_size):
            found.append(compute(ids).cpu().double())
            if until_sure:
                first = torch.cat([losses[0] for losses in found])
                work.total = min(len(windows), windows_needed(first))
            work.advance(len(ids))
            if until_sure and work.done >= (work.total or 0):
                break
    return torch.cat(found, dim=1)


def model_perplexity(model: PreTrainedModel, windows: Tensor, batch_size: int = 8) -> float:
    """Computes a model's perplexity: exp of the mean cross-entropy over all predicted tokens.

    It equals ``masking.perplexity`` for a mask that keeps everything, and takes any causal LM,
    pruned ones included.

    Args:
        model: a causal LM.
        windows: token ids, (N, T) int64; the first token of each window is not predicted.
        batch_size: windows of one call.

    Returns:
        The perplexity, with the mean taken in float64.
    """
    (losses,) = window_losses(partial(model_losses, model), windows, batch_size)
    return perplexity_of(losses).value


def model_losses(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Computes the losses of sequences (B, T) as the one row of ``window_losses``, (1, B)."""
    return sequence_losses(model, input_ids)[None]
