"""What every metric gives, which units it scores, and the reductions that metrics share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.masking.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import GRANULARITIES, Group

_ROWS = 512  # converted to float32 at a time: a whole projection of a 70B model would be 1 GB


@dataclass(frozen=True)
class Importance:
    """What a metric says of the units.

    Attributes:
        scores: importance of each unit, (n,) float64, higher is more worth keeping.
        local: scores compare within a (layer, kind) group only, as Wanda-sp's; else within a kind.
        mask: the metric's own one-shot mask, (n,) uint8.
    """

    scores: Tensor
    local: bool
    mask: Tensor


Metric = Callable[[MaskedLM, Tensor, Budget, int], Importance]
"""A metric: (model, calibration windows (N, T), budget, seed) -> importance."""

_FINE = ("heads+channels", "heads", "channels")
_DEPTH = ("layers", "blocks")

FITS: dict[str, tuple[str, ...]] = {
    "wanda-sp": _FINE,
    "layerwise-ppl": _DEPTH,
    "random": tuple(GRANULARITIES),
    "magnitude": tuple(GRANULARITIES),
    "flap": _FINE,
    "llm-pruner": _FINE,
    "layerwise-taylor": _DEPTH,
    "shortgpt": ("layers",),
    "fasp": _FINE,
    "bonsai": _FINE,
    "stream-error": _FINE,
    "stream-error-refit": _FINE,
}
"""The granularities that each metric scores; the first is the metric's own."""


def check_metric(name: str, granularity: str) -> None:
    """Makes sure that a metric scores the units of a granularity.

    Raises:
        PruningError: it does not; the message names those that do.
    """
    if granularity not in FITS[name]:
        fitting = " or ".join(metric for metric, fits in FITS.items() if granularity in fits)
        raise PruningError(
            f"metric {name} does not score granularity {granularity!r}; use {fitting}"
        )


def square_sum(inputs: Tensor) -> Tensor:
    """Sum over tokens of squared inputs: (b, T, F) -> (F,) float64."""
    parts = [p.float().square().sum(0).double() for p in inputs.flatten(0, 1).split(_ROWS)]
    return torch.stack(parts).sum(0)


def mean_absolute(weight: Tensor) -> Tensor:
    """Mean of |W| over outputs: (D, inputs) -> (inputs,) float64."""
    parts = [part.float().abs().sum(0).double() for part in weight.split(_ROWS)]
    return torch.stack(parts).sum(0) / len(weight)


def per_unit(lm: MaskedLM, group: Group, score: Tensor) -> Tensor:
    """Input scores (inputs,) to unit scores (units of the group,).

    A channel block adds up its channels; a kv group adds up the dimensions of each of its query
    heads and averages over these.
    """
    shape = lm.units.shapes[group.layer]
    if group.kind == "channels":
        return score.view(-1, lm.units.channel_block).sum(1)
    heads = score.view(shape.kv_heads, shape.query_heads_per_group, shape.head_dim)
    return heads.sum(2).mean(1)
