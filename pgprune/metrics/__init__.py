"""Importance metrics: the one-shot baselines, and what the agents' probabilities start from."""

from functools import partial

from pgprune.metrics.base import FITS, Importance, Metric, check_metric
from pgprune.metrics.bonsai import bonsai
from pgprune.metrics.fasp import fasp
from pgprune.metrics.flap import flap
from pgprune.metrics.layerwise_ppl import layerwise_ppl
from pgprune.metrics.layerwise_taylor import layerwise_taylor
from pgprune.metrics.llm_pruner import llm_pruner
from pgprune.metrics.magnitude import magnitude
from pgprune.metrics.random_scores import random_scores
from pgprune.metrics.shortgpt import shortgpt
from pgprune.metrics.stream_error import stream_error
from pgprune.metrics.wanda_sp import wanda_sp

__all__ = [
    "FITS",
    "METRICS",
    "Importance",
    "Metric",
    "bonsai",
    "check_metric",
    "fasp",
    "flap",
    "layerwise_ppl",
    "layerwise_taylor",
    "llm_pruner",
    "magnitude",
    "random_scores",
    "shortgpt",
    "stream_error",
    "wanda_sp",
]

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
    "stream-error-refit": partial(stream_error, refit=True),
}
"""Every metric by its name: (model, calibration windows, budget, seed) -> Importance."""
