"""Evaluates a model without each of several parts, for greedy methods."""

import torch
from torch import Tensor

from pgprune.masking.masked_lm import MaskedLM
from pgprune.metrics.base import finite
from pgprune.utils.progress import track

_BATCH = 8  # windows of one call


def losses_without(lm: MaskedLM, mask: Tensor, parts: list[Tensor], windows: Tensor) -> Tensor:
    """Computes the mean loss of the masked model without one more part, for each part alone.

    Args:
        lm: the frozen model.
        mask: the units kept so far, (n,).
        parts: flat indices of the units of each part.
        windows: calibration token ids, (N, T).

    Returns:
        (parts,) float64 in nats; a loss that is not finite becomes ``finite``'s large one.
    """
    masks = mask.repeat(len(parts), 1)  # (parts, n)
    for row, part in zip(masks, parts, strict=True):
        row[part] = 0
    total = torch.zeros(len(parts), dtype=torch.float64)
    for batch in track(windows.split(_BATCH), "windows", unit="batches"):
        total += finite(lm.losses(masks, batch).cpu()).sum(dim=1)
    return total / len(windows)
