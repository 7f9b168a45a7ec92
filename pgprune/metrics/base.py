"""Defines metrics, and the reductions that they share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import GRANULARITIES, Group
from pgprune.metrics.importance import Importance
from pgprune.utils.progress import phase

ALL = tuple(GRANULARITIES)
FINE = ("heads+channels", "heads", "channels", "values+channels", "values")
DEPTH = ("layers", "blocks")
EXPERTS = tuple(name for name, kinds in GRANULARITIES.items() if "experts" in kinds)
"""Sets of granularities for metrics and methods; the first one is a method's default."""

_HOPELESS = 1e3  # nats, far above the loss of guessing (ln 100,000 is 11.5)
_ROWS = 512  # converted to float32 at a time: a whole projection of a 70B model would be 1 GB

Score = Callable[..., Importance]
"""(model, calibration windows (N, T), budget, seed) -> importance; maybe options by keyword."""


@dataclass(frozen=True)
class Metric:
    """A function that scores units, and what it needs. ``metric`` makes one.

    Attributes:
        name: on the command line.
        score: the function.
        granularities: that it scores.
        random: whether the seed changes the scores.
        backward: whether it back-propagates through the model.
        by_rate: whether the budget changes the scores.
        options: options of ``MethodConfig`` that it takes by keyword.
    """

    name: str
    score: Score
    granularities: tuple[str, ...] = ALL
    random: bool = False
    backward: bool = False
    by_rate: bool = False
    options: tuple[str, ...] = ()

    def __call__(
        self, lm: MaskedLM, windows: Tensor, budget: Budget, seed: int, **options: Any
    ) -> Importance:
        """Scores the units of a model.

        Args:
            lm: the frozen model.
            windows: calibration token ids, (N, T).
            budget: how much to keep; metrics that prune while they score need it.
            seed: of metrics that draw at random.
            **options: of this metric, by keyword.

        Raises:
            PruningError: it does not score units of this granularity, or an error of the metric.
        """
        self.check(lm.units.granularity)
        with phase(f"metric {self.name}"):
            return self.score(lm, windows, budget, seed, **options)

    def check(self, granularity: str) -> None:
        """Makes sure that the metric scores the units of a granularity.

        Raises:
            PruningError: it does not.
        """
        if granularity not in self.granularities:
            raise PruningError(
                f"metric {self.name} does not score granularity {granularity!r}, only "
                f"{' or '.join(self.granularities)}; choose one of these, or another metric"
            )


def metric(
    name: str,
    granularities: tuple[str, ...] = ALL,
    *,
    random: bool = False,
    backward: bool = False,
    by_rate: bool = False,
    options: tuple[str, ...] = (),
) -> Callable[[Score], Metric]:
    """Makes a metric of a function; the arguments are those of ``Metric``."""
    return lambda score: Metric(name, score, granularities, random, backward, by_rate, options)


def finite(losses: Tensor) -> Tensor:
    """Turns losses into float64, with 1,000 nats for one that is not finite.

    Sums and regressions over losses stay finite, and order its mask last.
    """
    return losses.double().nan_to_num(_HOPELESS, _HOPELESS)


def square_sum(inputs: Tensor) -> Tensor:
    """Sums squared inputs over tokens: (b, T, F) -> (F,) float64."""
    parts = [p.float().square().sum(0).double() for p in inputs.flatten(0, 1).split(_ROWS)]
    return torch.stack(parts).sum(0)


def mean_absolute(weight: Tensor) -> Tensor:
    """Averages |W| over outputs: (D, inputs) -> (inputs,) float64."""
    parts = [part.float().abs().sum(0).double() for part in weight.split(_ROWS)]
    return torch.stack(parts).sum(0) / len(weight)


def per_unit(lm: MaskedLM, group: Group, score: Tensor) -> Tensor:
    """Turns scores of inputs, (inputs,), into scores of a group's units, (units,).

    A channel block adds up its channels; a kv group adds up the dimensions of each of its query
    heads and averages over these, as a value dimension does.
    """
    shape = lm.units.shapes[group.layer]
    if group.kind == "channels":
        return score.view(-1, lm.units.channel_block).sum(1)
    heads = score.view(shape.kv_heads, shape.query_heads_per_group, shape.head_dim)
    return heads.mean(1).flatten() if group.kind == "values" else heads.sum(2).mean(1)
