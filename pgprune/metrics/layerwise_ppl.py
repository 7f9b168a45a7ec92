"""Layerwise perplexity: evaluates the model without each of several parts."""

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.metrics.base import DEPTH, EXPERTS, finite, metric
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
    experts, and heads beside them, the first 16 windows are used.
    """
    units = lm.units
    windows = windows[:_OF_EXPERTS] if "experts" in units.kinds else windows
    scores = torch.zeros(units.n, dtype=torch.float64)
    without = torch.ones(units.n, units.n) - torch.eye(units.n)  # (n, n), one unit gone in each
    for unit in track(range(units.n), "without one unit", unit="units"):
        for batch in windows.split(_BATCH):
            loss = lm.losses(without[unit : unit + 1], batch)  # (1, B)
            scores[unit] += finite(loss).sum().cpu()
    return Importance(scores / len(windows))


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
