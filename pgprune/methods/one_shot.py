"""Metrics as methods: score once, round, done."""

from functools import partial

from torch import Tensor

from pgprune.masking.problem import Problem
from pgprune.methods.base import MethodConfig, Pruned
from pgprune.metrics import METRICS, layerwise_taylor, llm_pruner, magnitude


def one_shot(
    name: str, problem: Problem, windows: Tensor, seed: int, config: MethodConfig
) -> Pruned:
    """A metric as a method: its own mask, and nothing else.

    Args:
        name: of the metric.
        problem: the frozen model and the budget.
        windows: calibration token ids, (N, T).
        seed: of the metric.
        config: ``protect_layers`` and ``taylor``, for the metrics that know them.
    """
    protect = config.protect_layers
    own = {
        "magnitude": partial(magnitude, protect=protect),
        "layerwise-taylor": partial(layerwise_taylor, protect=protect),
        "llm-pruner": partial(llm_pruner, taylor=config.taylor, protect=protect),
    }
    importance = own.get(name, METRICS[name])(problem.lm, windows, problem.budget, seed)
    return Pruned(importance.mask, importance)
