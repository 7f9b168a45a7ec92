"""Layerwise perplexity: evaluates the model without one block or layer."""

import torch
from torch import Tensor

from pgprune.masking.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.metrics.base import DEPTH, finite, metric
from pgprune.metrics.importance import Importance
from pgprune.utils.progress import track


@metric("layerwise-ppl", DEPTH)
def layerwise_ppl(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Scores a unit by the calibration loss without it.

    The loss orders units as perplexity does.

    Source: Kim et al. 2024, Shortened LLaMA (Nota-NetsPresso/shortened-llm), PPL criterion. No
    layer is protected, as in the paper; the released script keeps the outer ones by default.
    """
    units = lm.units
    scores = torch.zeros(units.n, dtype=torch.float64)
    without = torch.ones(units.n, units.n) - torch.eye(units.n)  # (n, n), one unit gone in each
    for unit in track(range(units.n), "without one unit", unit="units"):
        for batch in windows.split(8):
            loss = lm.losses(without[unit : unit + 1], batch)  # (1, B)
            scores[unit] += finite(loss).sum().cpu()
    return Importance(scores / len(windows))
