"""Policy-gradient estimators of the expected loss over Bernoulli masks, as pure functions.

With s the keep probabilities and L_k the loss of mask m_k, each estimate is
sum_k (L_k - b_k) score(m_k, s) / divisor, in float64. Masks are drawn independently, or in
antithetic pairs, whose scores depend on both masks (DisARM: Dong, Mnih & Tucker, NeurIPS 2020).
A mask whose loss is NaN counts as not drawn. Nothing here waits for the device.
"""

import math

import torch
from torch import Tensor

SCORES = ("preconditioned", "paper")
BASELINES = ("moving-average", "leave-one-out", "none")
SAMPLINGS = ("independent", "antithetic")
CONTROLS = ("none", "dense")
_FLOOR = 1e-7  # of s(1 - s): where s is 0 or 1, m - s is 0 and the score stays finite


def sample(
    probabilities: Tensor, count: int, generator: torch.Generator, sampling: str = "independent"
) -> Tensor:
    """Draws masks from the Bernoulli policy (Eq. 2): s (n,) float64 -> (count, n) uint8."""
    uniform = torch.rand(  # (K, n), or (K/2, n) for pairs
        (count // 2 if sampling == "antithetic" else count, len(probabilities)),
        generator=generator,
        dtype=torch.float64,
        device=probabilities.device,
    )
    return masks_from(uniform, probabilities, sampling)


def masks_from(uniform: Tensor, probabilities: Tensor, sampling: str) -> Tensor:
    """Makes masks from uniform numbers in [0, 1).

    Args:
        uniform: (K, n), or (K/2, n) for ``antithetic``.
        probabilities: s, (n,).
        sampling: ``independent``, or ``antithetic``: row i and row i + K/2 of the masks are made of
            u and of 1 - u.

    Returns:
        (K, n) uint8, where each entry is 1 with probability s.
    """
    masks = uniform < probabilities
    if sampling == "antithetic":
        masks = torch.cat([masks, uniform >= 1 - probabilities])  # 1 - u <= s
    return masks.to(torch.uint8)


def score_function(
    masks: Tensor, probabilities: Tensor, score: str, sampling: str = "independent"
) -> Tensor:
    """Computes the weights of each loss in the gradient, (K, n) float64.

    For independent masks they are the derivative of log p(m|s) in s, (m - s) / (s(1 - s)) (Remark
    4). For antithetic pairs they are DisARM's (m - m') / min(s, 1 - s) with m' the other mask of
    the pair: the mean of these derivatives over all u that give both masks. ``preconditioned``
    scores are these times sqrt(s(1 - s)).
    """
    variance = (probabilities * (1 - probabilities)).clamp(min=_FLOOR)
    if sampling == "independent":
        scale = variance if score == "paper" else variance.sqrt()
        return (masks.to(probabilities) - probabilities) / scale
    least = torch.minimum(probabilities, 1 - probabilities).clamp(min=_FLOOR)
    scale = least if score == "paper" else least / variance.sqrt()
    ours = masks.to(probabilities)  # (K, n)
    # Row i + K/2 is the other mask of row i's pair.
    return (ours - ours.roll(len(masks) // 2, dims=0)) / scale


def complete(finite: Tensor, sampling: str) -> Tensor:
    """Marks masks to learn from, (K,): those with a finite loss, in pairs only both."""
    return finite if sampling == "independent" else finite & finite.roll(len(finite) // 2)


def cosine(done: float) -> float:
    """Returns the factor of a step size when this share of the steps is done: from 1 to 0."""
    return (1 + math.cos(math.pi * done)) / 2


def moving_average(previous: float | Tensor, losses: Tensor, window: int) -> Tensor:
    """Computes Eq. (8): the baseline after this step's losses (K,), included in it; a scalar."""
    return (1 - 1 / window) * previous + losses.nanmean() / window


def advantages(losses: Tensor, baseline: str, average: float | Tensor) -> Tensor:
    """Subtracts the baseline from losses (K,); ``average`` is the moving one after this step."""
    if baseline == "moving-average":
        return losses - average
    if baseline == "leave-one-out":  # b_k = sum_{j != k} L_j / (K - 1)
        return losses - (losses.nansum() - losses) / (_count(losses) - 1)
    return losses


def gradient(
    masks: Tensor,
    advantage: Tensor,
    probabilities: Tensor,
    score: str,
    sampling: str = "independent",
) -> Tensor:
    """Estimates the gradient in s, (n,) float64.

    ``paper`` is the mean over masks (Eq. 7); ``preconditioned`` divides the sum by K - 1, as the
    released code does.

    Args:
        masks: (K, n).
        advantage: of each mask, (K,); NaN for one that does not count.
        probabilities: s, (n,) float64.
        score: ``paper`` or ``preconditioned``.
        sampling: how the masks were drawn.
    """
    count = _count(advantage)
    # sum_k (L_k - b_k) score(m_k, s) / divisor; a mask whose loss is NaN adds nothing.
    divisor = count if score == "paper" else (count - 1).clamp(min=1)
    scores = score_function(masks, probabilities, score, sampling)  # (K, n)
    return advantage.to(probabilities).nan_to_num(0.0) @ scores / divisor


def _count(values: Tensor) -> Tensor:
    """Counts the values (K,) that are not NaN, a scalar on their device."""
    return values.isnan().logical_not().sum()
