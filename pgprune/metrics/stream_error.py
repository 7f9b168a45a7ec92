"""What a unit adds to the residual stream that no other unit can give."""

import torch

from pgprune.masking.budget import Budget
from pgprune.masking.masked_lm import MaskedLM, Observation
from pgprune.masking.units import Group
from pgprune.metrics.base import FINE, metric
from pgprune.metrics.importance import Importance
from pgprune.repair.fit import DAMPING
from pgprune.repair.least_squares import LeastSquares, SecondMoments
from pgprune.repair.projection import KINDS
from pgprune.repair.removal import removals

LEVELLING = 0.75
"""Of the difference between layers that is taken out: 0 compares errors as they are, 1 within a
layer only. Chosen on three small models; docs/auto.md has the figures."""

_SMALLEST = 1e-12  # of a group's largest error: units that give nothing at all are alike


@metric("stream-error", FINE)
@torch.no_grad()
def stream_error(
    lm: MaskedLM,
    windows: torch.Tensor,
    budget: Budget,
    seed: int,
    refit: bool = False,
    levelling: float = LEVELLING,
) -> Importance:
    """The error in the residual stream when a unit goes after those that matter less.

    The squared error that pruned inputs leave in the output of their projection is taken token by
    token relative to the mean square of the hidden state that it is added to, as the norm behind
    will see it. Units are removed one by one, always the one that raises this error least, so two
    units that cancel go together and one of two that double each other stays. A unit's importance
    is the logarithm of that rise (of the largest up to there), less three quarters of the
    logarithm of the group's mean: errors of early layers matter more than they measure.

    With ``refit``, what is left is refitted after each removal, so importance is what a unit adds
    that no least-squares repair of the others can give: the greedy optimal brain surgeon of ZipLM,
    with errors measured in the stream and compared across layers.

    Source: ours. It is Wanda-sp's product of inputs and weights with three changes: the stream as
    the measure, which makes layers comparable, what other units are, and no root.

    Args:
        lm: the frozen model; its units must be heads, channels or both.
        windows: calibration token ids, (N, T).
        budget: how much to keep.
        seed: unused; the metric is deterministic.
        refit: whether the units that are left make up for those that go.
        levelling: share of the logarithm of the group's mean that is taken out.

    Raises:
        PruningError: activations that overflow.
    """
    groups = {(group.layer, group.kind): group for group in lm.units.groups}
    scores = torch.empty(lm.units.n, dtype=torch.float64)
    for seen in lm.observe(lm.units.ones(), windows):
        for kind, moments in _moments(lm, seen).items():
            if group := groups.get((seen.layer, kind)):
                errors = _errors(lm, group, moments, refit)  # (units,)
                level = levelling * errors.exp().mean().log()
                scores[group.start : group.stop] = errors - level
    return Importance(scores)


@metric("stream-error-refit", FINE)
def stream_error_refit(
    lm: MaskedLM, windows: torch.Tensor, budget: Budget, seed: int
) -> Importance:
    """``stream_error`` with ``refit``; the arguments are the same."""
    return stream_error(lm, windows, budget, seed, refit=True)


def _moments(lm: MaskedLM, seen: Observation) -> dict[str, SecondMoments]:
    """Second moments of each projection's inputs, by kind, relative to the stream's."""
    weights = {kind: lm.projection(seen.layer, kind) for kind in KINDS}
    moments = {kind: SecondMoments.of(weight) for kind, weight in weights.items()}
    for state, inputs in zip(seen.states, seen.inputs, strict=True):
        squares = state.to(inputs[0].device).float().square().mean(-1, keepdim=True)  # (b, T, 1)
        scale = squares.clamp(min=torch.finfo(squares.dtype).tiny).rsqrt()
        for kind, x in zip(KINDS, inputs, strict=True):
            wide = x.to(torch.promote_types(x.dtype, torch.float32)) * scale.to(x.device)
            moments[kind].add(wide, wide @ weights[kind].T.to(wide))
    return moments


def _errors(lm: MaskedLM, group: Group, moments: SecondMoments, refit: bool) -> torch.Tensor:
    """Logarithms of the rises that a group's units cause when they go, (units,) float64."""
    weight, units = lm.projection(group.layer, group.kind), group.stop - group.start
    name = f"the {group.kind} of layer {group.layer}"
    width = weight.shape[1] // units
    squares = LeastSquares(moments, weight, width, damping=DAMPING, name=name)
    order, costs = zip(*removals(squares, refit), strict=True)
    rises = torch.tensor(costs, dtype=torch.float64).cummax(0).values
    rises = rises.clamp(min=max(_SMALLEST * float(rises[-1]), torch.finfo(rises.dtype).tiny))
    errors = torch.empty_like(rises)
    ranks = torch.arange(units, dtype=torch.float64) / units
    errors[torch.tensor(order)] = rises.log() + 1e-9 * ranks  # those that tie stay in order
    return errors
