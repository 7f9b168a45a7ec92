"""Random scores: the baseline that every metric must beat."""

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.metrics.base import metric
from pgprune.metrics.importance import Importance


@metric("random", random=True)
def random_scores(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Draws uniform random scores."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(lm.units.n, generator=generator, dtype=torch.float64)
    return Importance(scores)
