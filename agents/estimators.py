"""Policy-gradient estimators of the expected loss over Bernoulli masks, as pure functions.

With s the keep probabilities and L_k the loss of mask m_k, each estimate is
sum_k (L_k - b_k) score(m_k, s) / divisor, in float64.
"""

import torch
from torch import Tensor

SCORES = ("preconditioned", "paper")
BASELINES = ("moving-average", "leave-one-out", "none")
_FLOOR = 1e-7  # of s(1 - s): where s is 0 or 1, m - s is 0 and the score stays finite


def sample(probabilities: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws masks from the Bernoulli policy (Eq. 2): s (n,) float64 -> (count, n) uint8."""
    uniform = torch.rand(
        (count, len(probabilities)),
        generator=generator,
        dtype=torch.float64,
        device=probabilities.device,
    )
    return (uniform < probabilities).to(torch.uint8)


def score_function(masks: Tensor, probabilities: Tensor, score: str) -> Tensor:
    """The derivative of log p(m|s) in s (Remark 4), or that times sqrt(s(1-s)): (K, n) float64."""
    variance = (probabilities * (1 - probabilities)).clamp(min=_FLOOR)
    scale = variance if score == "paper" else variance.sqrt()
    return (masks.to(probabilities) - probabilities) / scale


def moving_average(previous: float, losses: Tensor, window: int) -> float:
    """Eq. (8): the baseline after this step's losses (K,), which are inside it."""
    return (1 - 1 / window) * previous + float(losses.mean()) / window


def advantages(losses: Tensor, baseline: str, average: float) -> Tensor:
    """Losses (K,) minus their baseline; ``average`` is the moving average after this step."""
    if baseline == "moving-average":
        return losses - average
    if baseline == "leave-one-out":
        return losses - (losses.sum() - losses) / (len(losses) - 1)
    return losses


def gradient(masks: Tensor, advantage: Tensor, probabilities: Tensor, score: str) -> Tensor:
    """The estimate of the gradient in s, (n,) float64.

    ``paper`` is the mean over masks (Eq. 7); ``preconditioned`` divides the sum by K - 1, as the
    released code does.

    Args:
        masks: (K, n).
        advantage: of each mask, (K,).
        probabilities: s, (n,) float64.
        score: ``paper`` or ``preconditioned``.
    """
    divisor = len(masks) if score == "paper" else max(1, len(masks) - 1)
    return advantage.to(probabilities) @ score_function(masks, probabilities, score) / divisor
