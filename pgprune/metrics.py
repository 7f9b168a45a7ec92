"""Importance metrics: the one-shot baselines, and what the agents' probabilities start from."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pgprune.budget import Budget
from pgprune.errors import PruningError
from pgprune.masked_lm import MaskedLM
from pgprune.units import GRANULARITIES, Group

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


def wanda_sp(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Wanda-sp: column norms of output and down projections, weighted by their activations.

    The score of input j is mean_i |W_ij| sqrt(mean of x_j^2); a kv group adds up its head
    dimensions and averages over its query heads. Sequential: each layer is scored on the outputs
    of the pruned layers before it, and every layer keeps its own share.

    Source: An et al. 2024 (CASIA-IVA-Lab/FLAP) and the initialisation of
    ethanygao/backprop-free_LLM_pruning, for kv groups and any head size.

    Args:
        lm: the frozen model; its units must be heads, channels or both.
        windows: calibration token ids, (N, T).
        budget: how much to keep.
        seed: unused; the metric is deterministic.

    Raises:
        PruningError: the units are blocks or layers.
    """
    units = lm.units
    check_metric("wanda-sp", units.granularity)
    local = budget.local()
    scores = torch.zeros(units.n, dtype=torch.float64)
    mask = units.ones()
    for observation in lm.observe(mask, windows):
        squares: dict[str, list[Tensor]] = {"heads": [], "channels": []}
        for attention_input, mlp_input in observation.inputs:
            squares["heads"].append(_square_sum(attention_input))
            squares["channels"].append(_square_sum(mlp_input))
        for group in (g for g in units.groups if g.layer == observation.layer):
            column = _mean_absolute(lm.projection(group.layer, group.kind))  # (inputs,)
            energy = torch.stack(squares[group.kind]).sum(0) / windows.numel()  # mean of x^2
            score = column * energy.sqrt()
            scores[group.start : group.stop] = _per_unit(lm, group, score).cpu()
        # Rounding is per layer, so the layers that follow do not change this layer's mask.
        here = units.layer == observation.layer
        mask[here] = local.round(scores)[here]
    return Importance(scores, local=True, mask=mask)


def random_scores(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Uniform random scores: the floor that every metric must beat.

    Args:
        lm: the frozen model, for its units only.
        windows: unused.
        budget: how much to keep.
        seed: of the scores.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(lm.units.n, generator=generator, dtype=torch.float64)
    return Importance(scores, local=False, mask=budget.round(scores))


def layerwise_ppl(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Layerwise perplexity: how bad the model gets without one block or layer, one at a time.

    The score is the calibration loss without the unit, which orders units as perplexity does.

    Source: Kim et al. 2024, Shortened LLaMA (Nota-NetsPresso/shortened-llm), PPL criterion.

    Args:
        lm: the frozen model; its units must be blocks or layers.
        windows: calibration token ids, (N, T).
        budget: how much to keep.
        seed: unused; the metric is deterministic.

    Raises:
        PruningError: the units are heads or channels.
    """
    units = lm.units
    check_metric("layerwise-ppl", units.granularity)
    scores = torch.zeros(units.n, dtype=torch.float64)
    without = torch.ones(units.n, units.n) - torch.eye(units.n)  # (n, n), one unit gone in each
    for unit in range(units.n):
        for batch in windows.split(8):
            loss = lm.losses(without[unit : unit + 1], batch)  # (1, B)
            scores[unit] += loss.double().nan_to_num(1e3, 1e3).sum().cpu()
    return Importance(scores / len(windows), local=False, mask=budget.round(scores))


METRICS: dict[str, Callable[[MaskedLM, Tensor, Budget, int], Importance]] = {
    "wanda-sp": wanda_sp,
    "layerwise-ppl": layerwise_ppl,
    "random": random_scores,
}
"""Every metric by its name: (model, calibration windows, budget, seed) -> Importance."""

_FITS = {
    "wanda-sp": ("heads+channels", "heads", "channels"),
    "layerwise-ppl": ("blocks", "layers"),
    "random": tuple(GRANULARITIES),
}


def check_metric(name: str, granularity: str) -> None:
    """Makes sure that a metric scores the units of a granularity.

    Raises:
        PruningError: it does not; the message names those that do.
    """
    if granularity not in _FITS[name]:
        fitting = " or ".join(metric for metric in METRICS if granularity in _FITS[metric])
        raise PruningError(
            f"metric {name} does not score granularity {granularity!r}; use {fitting}"
        )


def _square_sum(inputs: Tensor) -> Tensor:
    """Sum over tokens of squared inputs: (b, T, F) -> (F,) float64."""
    parts = [p.float().square().sum(0).double() for p in inputs.flatten(0, 1).split(_ROWS)]
    return torch.stack(parts).sum(0)


def _mean_absolute(weight: Tensor) -> Tensor:
    """Mean of |W| over outputs: (D, inputs) -> (inputs,) float64."""
    parts = [part.float().abs().sum(0).double() for part in weight.split(_ROWS)]
    return torch.stack(parts).sum(0) / len(weight)


def _per_unit(lm: MaskedLM, group: Group, score: Tensor) -> Tensor:
    """Input scores (inputs,) to unit scores (units of the group,)."""
    shape = lm.units.shapes[group.layer]
    if group.kind == "channels":
        return score.view(-1, lm.units.channel_block).sum(1)
    heads = score.view(shape.kv_heads, shape.query_heads_per_group, shape.head_dim)
    return heads.sum(2).mean(1)
