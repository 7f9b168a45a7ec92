"""The policy gradient estimator's variance at fixed s (Appendix A.4, never measured in the paper).

A pool of masks is evaluated once, in groups of six on one calibration batch each. Estimators of
every kind are then formed from the same losses, each step taking its N_s masks from one group and
the moving average carried from group to group, as the agent does.
"""

from itertools import product
from typing import Any

import torch
from torch import Tensor

from pgprune.agents.reinforce import SCORES, advantages, gradient, moving_average
from pgprune.budget.problem import Problem
from pgprune.envs import LLMPruningVectorEnv

GROUP = 6  # masks on one batch: whole steps of 2, 3 and 6 masks
MASKS = (2, 3, 4, 6)
WINDOWS = (1, 3, 5, 10, 20)
BASELINES = (*(("moving-average", window) for window in WINDOWS), ("leave-one-out", 0), ("none", 0))
_BURN_IN = 20  # steps before which a moving average remembers how it started


def estimator_variances(
    problem: Problem, probabilities: Tensor, evaluations: int, seed: int
) -> dict[str, Any]:
    """Measures the variance of every estimator at fixed keep probabilities.

    Args:
        problem: model, calibration text and budget.
        probabilities: s, (n,) float64.
        evaluations: masks of the pool.
        seed: of the masks.

    Returns:
        ``estimators``, one entry for each score, baseline, window and N_s with its ``factor`` (the
        multiple of the gradient that it estimates) and ``variance`` (of the estimate divided by
        that factor, summed over units), and ``signal``, for each score an unbiased estimate of the
        squared norm of what is estimated.
    """
    env = LLMPruningVectorEnv(GROUP, problem=problem, seed=seed)
    env.reset(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    pool = []
    # One batch for each group: the variance has a part within a batch and one between batches.
    for _ in range(evaluations // GROUP):
        uniform = torch.rand(GROUP, len(probabilities), generator=generator, dtype=torch.float64)
        masks = (uniform < probabilities).to(torch.uint8)  # (GROUP, n)
        pool.append((masks, -env.step(masks)[1].double()))
    entries = [
        _entry(pool, probabilities, score, baseline, window, masks)
        for score, (baseline, window), masks in product(SCORES, BASELINES, MASKS)
    ]
    losses = torch.stack([loss for _, loss in pool])  # (groups, GROUP)
    return {
        "estimators": entries,
        "signal": {score: _signal(pool, probabilities, score) for score in SCORES},
        "loss": {
            "mean": float(losses.mean()),
            "within_batch": float(losses.var(dim=1).mean()),
            "total": float(losses.var()),
        },
    }


def bias_factor(score: str, baseline: str, window: int, masks: int) -> float:
    """Returns the multiple of the gradient that an estimator has as its expectation."""
    # The current losses are inside the moving average, each with weight 1 / (N_s T).
    inside = 1 - 1 / (masks * window) if baseline == "moving-average" else 1.0
    # The preconditioned score divides by N_s - 1, a mean over masks by N_s.
    return inside * (masks / (masks - 1) if score == "preconditioned" else 1.0)


Pool = list[tuple[Tensor, Tensor]]


def _entry(
    pool: Pool, probabilities: Tensor, score: str, baseline: str, window: int, masks: int
) -> dict[str, Any]:
    factor = bias_factor(score, baseline, window, masks)
    variances = [
        _estimates(pool, probabilities, score, baseline, window, slice(start, start + masks))
        .div(factor)
        .var(dim=0)
        .sum()
        for start in range(0, GROUP - masks + 1, masks)
    ]
    return {
        "score": score,
        "baseline": baseline,
        "window": window,
        "masks": masks,
        "factor": factor,
        "variance": float(torch.stack(variances).mean()),
    }


def _estimates(
    pool: Pool, probabilities: Tensor, score: str, baseline: str, window: int, part: slice
) -> Tensor:
    """Estimates from a part of each group's masks, after the burn-in: (steps, n)."""
    average: float | Tensor = float(pool[0][1][part].mean())
    found = []
    for masks, losses in pool:
        masks, losses = masks[part], losses[part]  # (N_s, n), (N_s,)
        # The baseline remembers earlier batches, as in a run.
        average = moving_average(average, losses, max(1, window))
        found.append(gradient(masks, advantages(losses, baseline, average), probabilities, score))
    return torch.stack(found[min(_BURN_IN, len(found) // 2) :])


def _signal(pool: Pool, probabilities: Tensor, score: str) -> float:
    """Estimates the squared norm of the gradient from two halves that share no batch."""
    every = _estimates(pool, probabilities, score, "leave-one-out", 0, slice(0, GROUP))
    every = every / bias_factor(score, "leave-one-out", 0, GROUP)  # (steps, n)
    # E[a . b] = |g|^2 for independent estimates; the square of one would add the variance.
    return float(every[0::2].mean(0) @ every[1::2].mean(0))
