"""Importance metrics: the one-shot baselines, and what the agents' probabilities start from.

A new metric is one file here, with a function under ``@metric(...)``, and one line in ``METRICS``.
``Metric`` documents the arguments that all metrics share.
"""

from pgprune.metrics.base import Metric, metric
from pgprune.metrics.bonsai import bonsai
from pgprune.metrics.experts import expert_frequency, reap
from pgprune.metrics.fasp import fasp
from pgprune.metrics.flap import flap
from pgprune.metrics.importance import Importance
from pgprune.metrics.layerwise_ppl import layerwise_ppl
from pgprune.metrics.layerwise_taylor import layerwise_taylor
from pgprune.metrics.llm_pruner import llm_pruner
from pgprune.metrics.magnitude import magnitude
from pgprune.metrics.random_scores import random_scores
from pgprune.metrics.shortgpt import shortgpt
from pgprune.metrics.stream_error import stream_error, stream_error_refit
from pgprune.metrics.wanda_sp import wanda_sp

__all__ = ["METRICS", "Importance", "Metric", "metric"]

METRICS: dict[str, Metric] = {
    "wanda-sp": wanda_sp,
    "layerwise-ppl": layerwise_ppl,
    "random": random_scores,
    "magnitude": magnitude,
    "flap": flap,
    "llm-pruner": llm_pruner,
    "layerwise-taylor": layerwise_taylor,
    "shortgpt": shortgpt,
    "fasp": fasp,
    "bonsai": bonsai,
    "stream-error": stream_error,
    "stream-error-refit": stream_error_refit,
    "reap": reap,
    "expert-frequency": expert_frequency,
}
"""Every metric by its name: also a pruning method (``--method``) and a start (``--init``)."""
