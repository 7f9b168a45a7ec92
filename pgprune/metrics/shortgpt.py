"""ShortGPT: how much a layer turns the hidden states."""

import torch
from torch import Tensor

from pgprune.masking.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.metrics.base import metric
from pgprune.metrics.importance import Importance


@metric("shortgpt", ("layers",))
def shortgpt(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Block influence: 1 minus the mean cosine of a layer's hidden states before and after it.

    Source: Men et al. 2024, ShortGPT. A state of zeros, which has no direction, counts as turned.

    Args:
        lm: the frozen model; its units must be layers.
        windows: calibration token ids, (N, T).
        budget: unused.
        seed: unused; the metric is deterministic.
    """
    cosine = torch.zeros(lm.units.n, dtype=torch.float64)
    for layer, before, after in lm.states(windows):
        similar = torch.cosine_similarity(before.double(), after.double(), dim=-1)  # (b, T)
        cosine[layer] += similar.sum().cpu()
    return Importance(1 - cosine / windows.numel())
