"""From a metric's scores to masks: a number for each (layer, kind), added before the rounding.

Which units of a layer matter, a metric says from a few forward passes; how layers compare, it does
not know. Agents that search among such offsets have a few dozen dimensions, whatever the model.
"""

import torch
from torch import Tensor

from pgprune.envs import LLMPruningVectorEnv
from pgprune.masking.budget import Budget
from pgprune.metrics import METRICS, Importance
from pgprune.metrics.initialization import metric_name


def importance_of(env: LLMPruningVectorEnv, importance: Importance | str, seed: int) -> Importance:
    """The importance of an environment's units, by the metric of a name if it is one.

    Args:
        env: whose units, model and calibration stream (its first 128 windows).
        importance: is returned as it is, or a metric's name; ``auto`` is ``stream-error`` for heads
            and channels.
        seed: of metrics that draw at random.

    Raises:
        PruningError: an unknown metric, or one that does not score such units.
    """
    if not isinstance(importance, str):
        return importance
    metric = METRICS[metric_name(importance, env.units.granularity, fine="stream-error")]
    return metric(env.problem.lm, env.problem.stream.head(128), env.budget, seed)


def scores_of(env: LLMPruningVectorEnv, importance: Importance | str, seed: int) -> Tensor:
    """The standardised scores of the importance that ``importance_of`` gives, (n,) float64."""
    return importance_of(env, importance, seed).standardised(env.units)


def masks_of(offsets: Tensor, scores: Tensor, budget: Budget) -> Tensor:
    """The masks of offsets, one number for each group or for each unit.

    Args:
        offsets: (K, groups), or (K, n).
        scores: of the units, (n,), on the CPU.
        budget: which rounds their sums.

    Returns:
        (K, n) uint8 on the CPU.
    """
    if offsets.shape[1] != len(scores):
        offsets = offsets[:, budget.units.group]
    return torch.stack([budget.round(scores + row) for row in offsets])
