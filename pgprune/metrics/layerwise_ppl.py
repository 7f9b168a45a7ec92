"""Layerwise perplexity: evaluates the model without each of several parts."""

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.metrics.base import DEPTH, EXPERTS, finite, metric
from pgprune.metrics.experts import of_channels
from pgprune.metrics.importance import Importance
from pgprune.utils.progress import track

_BATCH = 8  # windows of one call
_OF_EXPERTS = 16  # windows, as there are many experts


@metric("layerwise-ppl", DEPTH + EXPERTS)
def layerwise_ppl(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Scores a unit by the calibration loss without it.

    The loss orders units as perplexity does.

    Source: Kim et al. 2024, Shortened LLaMA (Nota-NetsPresso/shortened-llm), PPL criterion. No
    layer is protected, as in the paper; the released script keeps the outer ones by default. For
    experts, and heads beside them, the first 16 windows are used. Channels beside experts, which
    are too many and are in the order of what they add, are scored by that as for ``reap``.
    """
    units = lm.units
    scores = of_channels(lm, windows)
    windows = windows[:_OF_EXPERTS] if "experts" in units.kinds else windows
    tried = torch.arange(units.n)
    if units.multiply:
        tried = tried[units.kind == units.kinds.index("experts")]
    for unit in track(tried.tolist(), "without one unit", unit="units"):
        without = units.ones()[None]
        without[0, unit] = 0
        for batch in windows.split(_BATCH):
            scores[unit] += finite(lm.losses(without, batch)).sum().cpu()  # of (1, B)
        scores[unit] /= len(windows)
    return Importance(scores)


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
