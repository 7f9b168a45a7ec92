"""Layer offsets: a number for each (layer, kind), added to a metric's scores before rounding.

A metric ranks the units of a layer from a few forward passes, but does not compare layers. Agents
that search among these offsets have a few dozen dimensions, whatever the model.
"""

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.envs import LLMPruningVectorEnv
from pgprune.metrics import METRICS, Importance
from pgprune.metrics.initialization import metric_name


def importance_of(env: LLMPruningVectorEnv, importance: Importance | str, seed: int) -> Importance:
    """Returns the importance of an environment's units; runs the metric if it is a name.

    Args:
        env: has the units, the model and the calibration stream (its first 128 windows).
        importance: is returned as it is, or a metric's name; ``auto`` is ``stream-error`` for heads
            and channels.
        seed: of metrics that draw at random.

    Raises:
        PruningError: an unknown metric, or one that does not score these units.
    """
    if not isinstance(importance, str):
        return importance
    metric = METRICS[metric_name(importance, env.units.granularity, fine="stream-error")]
    return metric(env.problem.lm, env.problem.stream.head(128), env.budget, seed)


def scores_of(env: LLMPruningVectorEnv, importance: Importance | str, seed: int) -> Tensor:
    """Returns the standardised scores of ``importance_of``, (n,) float64."""
    return importance_of(env, importance, seed).standardised(env.units)


def masks_of(offsets: Tensor, scores: Tensor, budget: Budget) -> Tensor:
    """Adds offsets to scores, and rounds each sum to a mask.

    Args:
        offsets: one number for each group or each unit, (K, groups) or (K, n).
        scores: of the units, (n,), on the CPU.
        budget: rounds the sums.

    Returns:
        (K, n) uint8 on the CPU.
    """
    if offsets.shape[1] != len(scores):
        offsets = offsets[:, budget.units.group]  # (K, n)
    return torch.stack([budget.round(scores + row) for row in offsets])
