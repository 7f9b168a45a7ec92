"""ShortGPT: scores layers by the angle between their input and output."""

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.metrics.base import metric
from pgprune.metrics.importance import Importance


@metric("shortgpt", ("layers",))
def shortgpt(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Scores layers by their block influence.

    Source: Men et al. 2024, ShortGPT.
    """
    return Importance(block_influence(lm, windows))


def block_influence(lm: MaskedLM, windows: Tensor) -> Tensor:
    """Computes 1 minus the mean cosine of the hidden states before and after each dense layer.

    A state of zeros has cosine 0.

    Args:
        lm: the frozen model.
        windows: calibration token ids, (N, T).

    Returns:
        (layers,) float64.
    """
    cosine = torch.zeros(lm.units.layers, dtype=torch.float64)
    for layer, before, after in lm.states(windows):
        similar = torch.cosine_similarity(before.double(), after.double(), dim=-1)  # (b, T)
        cosine[layer] += similar.sum().cpu()
    return 1 - cosine / windows.numel()
