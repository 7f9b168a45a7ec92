"""ShortGPT: scores layers by the angle between their input and output."""

import torch
from torch import Tensor

from pgprune.masking.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.metrics.base import metric
from pgprune.metrics.importance import Importance


@metric("shortgpt", ("layers",))
def shortgpt(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Computes 1 minus the mean cosine of the hidden states before and after a layer.

    Source: Men et al. 2024, ShortGPT (block influence). A state of zeros has cosine 0.
    """
    cosine = torch.zeros(lm.units.n, dtype=torch.float64)
    for layer, before, after in lm.states(windows):
        similar = torch.cosine_similarity(before.double(), after.double(), dim=-1)  # (b, T)
        cosine[layer] += similar.sum().cpu()
    return Importance(1 - cosine / windows.numel())
