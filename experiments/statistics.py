"""Statistics over few runs on few tasks: what can be said of an agent, and how surely.

Scores are arrays (..., runs, tasks); the axes before are resamples. Definitions of Agarwal et al.
2021 (arXiv 2108.13264), as its package rliable computes them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

RESAMPLES = 10_000
_LEVEL = 0.95


class Estimate(NamedTuple):
    """A statistic and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: Numbers) -> Numbers:
    """Averages the middle half of all runs on all tasks: (..., runs, tasks) -> (...)."""
    # Runs of all tasks are one pool, of which a quarter is cut at each end.
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = ordered.shape[-1] // 4  # ordered is (..., runs x tasks)
    return ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1)


def performance_profile(scores: Numbers, thresholds: Numbers) -> Numbers:
    """Computes the share of runs above thresholds: (..., runs, tasks), (T,) -> (..., T)."""
    # (..., runs, tasks, T): every run counts the same, so a task is not weighted by its runs.
    return (scores[..., None] > thresholds).mean(axis=(-3, -2))


def improvement(one: Numbers, other: Numbers) -> Numbers:
    """Estimates how probably a run of one is above one of the other, averaged over tasks.

    Args:
        one: (..., runs, tasks).
        other: (..., runs, tasks), of the same tasks; the number of runs may differ.

    Returns:
        (...); equal scores count half.
    """
    # (..., runs, runs of the other, tasks): all pairs within a task, as in Mann and Whitney's U.
    pairs = one[..., :, None, :], other[..., None, :, :]
    return (np.greater(*pairs) + np.equal(*pairs) / 2).mean(axis=(-3, -2, -1))


def intervals(statistic: Callable[..., Numbers], *scores: Numbers, seed: int = 0) -> Numbers:
    """Computes the 95 % percentile interval of a statistic, by a stratified bootstrap.

    Args:
        statistic: of scores, with any axes before.
        scores: (runs, tasks) each; runs are drawn within each task, with replacement.
        seed: of what is drawn.

    Returns:
        Low and high, (2, ...).
    """
    # A fixed seed gives a page the same interval each time it is made from the same records.
    generator = np.random.default_rng(seed)
    values = statistic(*(_resampled(each, generator) for each in scores))  # (RESAMPLES, ...)
    return np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)


def estimate(statistic: Callable[..., Numbers], *scores: Numbers) -> Estimate:
    """Computes a statistic that is one number, and its interval."""
    low, high = intervals(statistic, *scores)
    return Estimate(float(statistic(*scores)), float(low), float(high))


def paired_difference(one: Numbers, other: Numbers) -> Estimate:
    """Averages differences of runs that share seeds, (runs,) each; pairs are resampled."""
    with np.errstate(invalid="ignore"):  # of two infinite values it is not a number
        return estimate(lambda pairs: pairs.mean(axis=(-2, -1)), (one - other)[:, None])


def _resampled(scores: Numbers, generator: np.random.Generator) -> Numbers:
    runs, tasks = scores.shape
    # Each task draws its runs apart: the strata of the bootstrap are the tasks.
    drawn = generator.integers(runs, size=(RESAMPLES, runs, tasks))
    return scores[drawn, np.arange(tasks)]  # (RESAMPLES, runs, tasks)
