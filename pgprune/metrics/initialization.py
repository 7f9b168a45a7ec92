"""From importance to the keep probabilities that a policy starts with (Appendix A.11)."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.errors import check_choice
from pgprune.metrics import METRICS, Importance
from pgprune.metrics.base import FINE
from pgprune.utils.options import Config, option

TRANSFORMS = ("sigmoid-norm", "score-const", "rank")
_SHARPNESS = 4.0  # of rank: a unit one deviation above the border is kept in 98 % of the masks
PROGRESSIVE = "random-progressive"
PROGRESSIVE_STEP = 0.05


@dataclass(frozen=True)
class InitConfig(Config):
    """Start: the metric that agents start from."""

    init: str = option(
        "auto",
        "metric that the keep probabilities start from",
        choices=lambda: ["auto", *METRICS, PROGRESSIVE],
    )
    init_transform: str = option(
        "auto",
        "how scores become probabilities; auto follows the granularity",
        choices=["auto", *TRANSFORMS],
    )
    init_samples: int = option(128, "calibration windows of the metric", minimum=1)
    init_constant: float = option(
        0.8, "score-const: probability of units that the metric keeps", above=0.5
    )


def metric_name(init: str, granularity: str, fine: str = "wanda-sp") -> str:
    """Returns the metric that an ``--init`` means at a granularity.

    Args:
        init: a metric, ``auto`` or ``random-progressive``.
        granularity: of the units.
        fine: what ``auto`` means for heads and channels; else it is ``layerwise-ppl``.

    Raises:
        PruningError: an unknown metric.
    """
    if init == "auto":
        return fine if granularity in FINE else "layerwise-ppl"
    name = "random" if init == PROGRESSIVE else init
    check_choice("init", name, ["auto", *METRICS, PROGRESSIVE])
    return name


def progressive_rates(prune_rate: float) -> list[float]:
    """Returns the prune rates of random-progressive: 5 %, 10 %, ... up to ``prune_rate``."""
    steps = math.ceil(prune_rate / PROGRESSIVE_STEP - 1e-9)
    return [*(round(PROGRESSIVE_STEP * i, 10) for i in range(1, steps)), prune_rate]


def initial_probabilities(
    importance: Importance, budget: Budget, transform: str = "auto", constant: float = 0.8
) -> Tensor:
    """Turns importance into keep probabilities on the budget.

    ``sigmoid-norm`` (Eq. A10, as the released code does it) is the sigmoid of the standardised
    score, shifted so that every group starts at the target's mean and clamped to [0, 1], which
    lowers the mean a little where the target is near 1; groups are (layer, kind) where scores
    compare within a layer, else kinds. ``score-const`` (Eq. A11) is ``constant`` for what the
    metric's mask keeps and ``1 - constant`` for the rest. ``rank``, which is ours, replaces scores
    by normal quantiles of their ranks in the same groups: where a few scores are far above all
    others, as in large models, sigmoid-norm gives all others nearly one probability. ``auto`` is
    score-const for blocks and layers: if the loss explodes without one, sigmoid-norm would make all
    others equal.

    Args:
        importance: of the units, by a metric.
        budget: what the probabilities are projected onto.
        transform: ``sigmoid-norm``, ``score-const``, ``rank`` or ``auto``.
        constant: the c of score-const.

    Returns:
        Probabilities, (n,) float64.

    Raises:
        PruningError: an unknown transform.
    """
    if transform == "auto":
        few = budget.units.granularity in ("blocks", "layers")
        transform = "score-const" if few else "sigmoid-norm"
    if transform == "score-const":
        kept = importance.mask(budget).to(torch.float64)
        return budget.project(kept * constant + (1 - kept) * (1 - constant))
    check_choice("init transform", transform, ["auto", *TRANSFORMS])
    function = _sigmoid_norm if transform == "sigmoid-norm" else _sigmoid_of_ranks
    normed = partial(function, mean=budget.target_share)
    return budget.project(importance.transformed(budget.units, normed))


def _sigmoid_norm(scores: Tensor, mean: float) -> Tensor:
    """Computes sigmoid((z - mean(z)) / std(z)), shifted to the target's mean: (m,) -> (m,)."""
    deviation = scores.std() if len(scores) > 1 else torch.zeros(())  # one unit: the target
    sigmoid = torch.sigmoid((scores - scores.mean()) / (deviation + 1e-8))
    return (sigmoid + mean - sigmoid.mean()).clamp(0, 1)


def _sigmoid_of_ranks(scores: Tensor, mean: float) -> Tensor:
    """Computes sigmoid(4 (q - b)) of normal quantiles q, which is 1/2 at the border b: (m,)."""
    place = torch.empty_like(scores)
    place[scores.argsort(stable=True)] = torch.arange(len(scores), dtype=scores.dtype)
    quantile = torch.special.ndtri((place + 0.5) / len(scores))
    border = torch.special.ndtri(torch.tensor(1 - mean, dtype=scores.dtype))
    return torch.sigmoid(_SHARPNESS * (quantile - border))
