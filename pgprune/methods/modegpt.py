"""MoDeGPT: decomposes pairs of projections, in layers that lose more the less they change."""

import torch
from torch import Tensor

from pgprune.budget.budget import BUDGETS
from pgprune.budget.problem import Problem
from pgprune.masking.units import Group, PruningUnits
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.metrics.importance import ranks
from pgprune.metrics.shortgpt import block_influence
from pgprune.repair.fit import DAMPING
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.projection import Projection
from pgprune.repair.refit import refit_layers
from pgprune.repair.repair import Repair
from pgprune.repair.solution import Solution

_MOST = 0.8  # of a layer that is pruned, if the prune rate leaves a choice


@method("modegpt", ("values+channels", "channels", "values"), budgets=BUDGETS)
def modegpt(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Prunes channels by leverage and value dimensions by singular values, each layer at its rate.

    The rates maximise sum_i s_i (1 - r_i) + e H(r) for block influences s and the entropy H, so
    layers that change their states little are pruned most (``rates_of_layers``). All that is read
    is what the dense model gives. Type I: the MLP is a Nystrom approximation. It keeps the channels
    with the largest ridge leverage scores, diag(C (C + t I)^-1) for second moments C of the inputs
    of the down projection, and refits that projection by least squares. Type III: values and
    outputs of a head are their product's truncated singular value decomposition. Value dimensions
    are rotated before (``models.value_rotation``), so to prune those of the smallest singular
    values is this truncation; all kv heads of a layer keep equally many.

    Left out: type II, queries and keys by a CR decomposition, because pairs of their dimensions are
    no units here; their parameters are not counted. Ours: moments for type III are those of what
    attention gives, and not those of the layer's inputs; least squares are damped and fit the bias
    too, where there is one; t is the same damping; e is 0.1 by default, and a layer loses at most
    0.8 where the prune rate allows it, since the paper's values were not at hand; the last units
    that the budget allows are kept. With ``--scope local`` layers keep equal shares.

    Published: 90 to 95 % of the zero-shot accuracy of LLaMA-2, LLaMA-3 and OPT at 25 to 30 % of the
    parameters removed; a 13B model takes hours on one GPU.

    Source: Lin et al. 2025 (MoDeGPT, arXiv 2408.09632); formulas as in the replication
    cbacary/MoDeGPT.

    Options: ``modegpt_entropy``.

    Returns:
        The mask, the refitted down projections, and in the notes the layers' prune rates.

    Raises:
        PruningError: the activations are not finite.
    """
    lm, units, rate = problem.lm, problem.units, problem.budget.prune_rate
    rates = rates_of_layers(block_influence(lm, windows), rate, config.modegpt_entropy)
    counts = _counts(problem, rates)
    mask, repair = units.ones(), Repair()

    def solve(projection: Projection) -> Solution:
        if (group := projection.group) is None:
            return {}
        squares, count = projection.least_squares(DAMPING), counts[group.layer, group.kind]
        if group.kind == "values":
            first = first_values(squares, units, group)
        else:
            first = leverages(squares).argsort(descending=True, stable=True)
        kept = torch.zeros(squares.units, dtype=torch.bool)
        kept[first[:count].cpu()] = True
        mask[group.start : group.stop] = kept
        if group.kind == "channels" and not kept.all():
            weight, key = squares.refit(kept), (group.layer, group.projection)
            repair.weights[key] = squares.in_place(weight).to("cpu", lm.dtype)
            if (bias := squares.bias(weight)) is not None:
                repair.biases[key] = bias.to("cpu", lm.dtype)
        return {}  # the model stays dense

    refit_layers(lm, units.ones(), windows, solve, "projection")
    return Pruned(mask, repair=repair, notes={"rates": rates.tolist()})


def rates_of_layers(influence: Tensor, rate: float, entropy: float) -> Tensor:
    """Shares a prune rate out over layers: r_i = L p softmax(-s / e)_i, at most ``_MOST`` or p.

    What layers lose less than their share, because they are at the limit, the others lose in
    proportion.

    Args:
        influence: s, (layers,) float64.
        rate: p, the mean of the rates.
        entropy: e, above 0; large ones give equal rates.
    """
    weights = torch.softmax(-influence / entropy, dim=0)
    rates, most = len(weights) * rate * weights, max(_MOST, rate)
    full = torch.zeros_like(rates, dtype=torch.bool)
    while bool((over := (rates > most) & ~full).any()):
        full |= over
        left = len(weights) * rate - most * int(full.sum())
        rates = torch.where(full, most, left * weights / weights[~full].sum())
    return rates


def leverages(squares: LeastSquares) -> Tensor:
    """Computes the ridge leverage scores of units, (units,): diag(C (C + t I)^-1).

    It is 1 - t [(C + t I)^-1]_jj of input j, and a unit adds up its inputs.
    """
    inverse = squares.inverse(squares.everything()).diagonal()
    return (1 - squares.ridge * inverse).view(squares.units, -1).sum(1)


def first_values(squares: LeastSquares, units: PruningUnits, group: Group) -> Tensor:
    """Orders value dimensions: the first of all kv heads, then the second, and so on, (units,).

    Those of a head are in the order of sum_q |O_qj|^2 E a_qj^2, over its query heads q. Of rotated
    values it is the squared singular value.
    """
    energy = squares.squares * squares.weight.square().sum(0)  # (inputs,)
    energy = energy.view(squares.units, -1).sum(1).cpu()
    heads = energy.view(units.shapes[group.layer].kv_heads, -1)
    place = heads.argsort(dim=1, descending=True, stable=True).argsort(dim=1).flatten()
    by_energy = energy.argsort(descending=True, stable=True)
    return by_energy[place[by_energy].argsort(stable=True)]


def _counts(problem: Problem, rates: Tensor) -> dict[tuple[int, str], int]:
    """Counts the units that each group keeps at the layers' rates, by layer and kind."""
    units = problem.units
    # Which units of a group are kept does not matter here, so any scores give the counts.
    order = ranks(units, torch.zeros(units.n)) - rates[units.layer]
    counts = units.kept_counts(problem.budget.round(order)[None])[0].tolist()
    return {(g.layer, g.kind): int(n) for g, n in zip(units.groups, counts, strict=True)}
