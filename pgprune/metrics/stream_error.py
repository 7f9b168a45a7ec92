"""Stream error: scores units by the error in the residual stream when they are removed."""

import torch

from pgprune.budget.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.observation import Observation
from pgprune.masking.units import Group
from pgprune.metrics.base import FINE, metric
from pgprune.metrics.importance import Importance
from pgprune.models.residual import adds_its_output, in_the_stream, slope
from pgprune.repair.fit import DAMPING
from pgprune.repair.least_squares import LeastSquares, SecondMoments
from pgprune.repair.projection import KINDS, run_linear
from pgprune.repair.removal import removals

LEVELLING = 0.75
"""Share of the differences between layers that is removed: 0 compares errors as they are, 1 within
a layer only. Chosen on three small models; docs/auto.md has the figures."""

_SMALLEST = 1e-12  # of a group's largest error: below it units count as equal


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
    """Scores a unit by the error in the residual stream when it follows less important ones.

    The error of a projection with weights W that loses the inputs P is measured token by token
    relative to the hidden state h that it is added to, as the next norm sees it:

        E(P) = sum over tokens of |W_P x_P|^2 / mean(h^2)

    Units are removed one by one, always the one that raises E least. So two units that cancel are
    removed together, and one of two equal ones stays. With r_u the largest rise up to the removal
    of unit u, its importance is log r_u - 0.75 log mean(r) over the units of its projection: errors
    of early layers matter more than their size.

    With ``refit``, the units that are left are refitted after each removal. The rise is then what
    no least-squares repair of the others can give: the greedy optimal brain surgeon of ZipLM, with
    errors measured in the stream and compared across layers.

    Source: ours. It differs from Wanda-sp in three ways: errors are relative to the stream, which
    makes layers comparable; removed units count together; and there is no root.

    Options:
        refit: whether the units that are left are refitted.
        levelling: share of log mean(r) that is subtracted.

    Raises:
        PruningError: activations that overflow.
    """
    groups = {(group.layer, group.projection): group for group in lm.units.groups}
    scores = torch.empty(lm.units.n, dtype=torch.float64)
    for seen in lm.observe(lm.units.ones(), windows):
        weights = {
            kind: in_the_stream(seen.module, lm.family, kind, lm.projection(seen.layer, kind))
            for kind in KINDS
            if kind in lm.family.projections  # of a mixture: heads
        }
        for kind, moments in _moments(lm, seen, weights).items():
            if group := groups.get((seen.layer, kind)):
                errors = _errors(lm, group, moments, weights[kind], refit)  # (units,)
                level = levelling * errors.exp().mean().log()  # 0.75 log mean(r)
                scores[group.start : group.stop] = errors - level
    return Importance(scores)


@metric("stream-error-refit", FINE)
def stream_error_refit(
    lm: MaskedLM, windows: torch.Tensor, budget: Budget, seed: int
) -> Importance:
    """Computes ``stream_error`` with ``refit``."""
    return stream_error.score(lm, windows, budget, seed, refit=True)


def _moments(
    lm: MaskedLM, seen: Observation, weights: dict[str, torch.Tensor]
) -> dict[str, SecondMoments]:
    """Computes second moments of x / sqrt(mean(h^2)) for each projection, by kind.

    Where a norm or a multiplier acts on what the projection gives, the slope of both is a factor.
    """
    moments = {kind: SecondMoments.of(weight) for kind, weight in weights.items()}
    for state, inputs in zip(seen.states, seen.inputs, strict=True):
        squares = state.to(inputs[0].device).float().square().mean(-1, keepdim=True)  # (b, T, 1)
        scale = squares.clamp(min=torch.finfo(squares.dtype).tiny).rsqrt()
        for kind, x in zip(weights, inputs, strict=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32)) * scale.to(x.device)
            if not adds_its_output(lm.family, kind):
                output = run_linear(lm.linear(seen.layer, kind), x)
                wide = wide * slope(seen.module, lm.family, kind, output)
            moments[kind].add(wide)
    for kind, moment in moments.items():
        # Scaled inputs and outputs: their squared errors are E without any further weights.
        moment.set_outputs(weights[kind])
    return moments


def _errors(
    lm: MaskedLM, group: Group, moments: SecondMoments, weight: torch.Tensor, refit: bool
) -> torch.Tensor:
    """Computes log r of the units of a group, (units,) float64, with weights in the stream."""
    units = group.stop - group.start
    name = f"the {group.kind} of layer {group.layer}"
    width = weight.shape[1] // units
    places = lm.units.input_order(group)
    squares = LeastSquares(moments, weight, width, damping=DAMPING, name=name, order=places)
    order, costs = zip(*removals(squares, refit), strict=True)
    # A later removal may cost less; the largest rise so far keeps the order of removal.
    rises = torch.tensor(costs, dtype=torch.float64).cummax(0).values
    rises = rises.clamp(min=max(_SMALLEST * float(rises[-1]), torch.finfo(rises.dtype).tiny))
    errors = torch.empty_like(rises)
    ranks = torch.arange(units, dtype=torch.float64) / units
    errors[torch.tensor(order)] = rises.log() + 1e-9 * ranks  # ties keep the order of removal
    return errors
