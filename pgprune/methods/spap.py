"""SPAP: solves a mixed-integer model of pruning by a penalty method in alternating steps."""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.methods.common.local_solver import prune_locally
from pgprune.metrics.base import FINE
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.sweep import Sweep

_FIRST_PENALTY = 1e-3  # relative to the mean square of an input
_GROWTH = 1.5  # of the penalty, each time
_PENALTIES = 60  # at most: the last one is 1.5^59 = 2e10 times the first
_BINARY = 0.99  # the marks count as binary if the largest P of them add up to this share of P
_SHORTLIST = 3  # units of each side that are tried in an exchange
_EXCHANGES = 50  # at most

Record = Callable[[float, float], None]
"""Receives the penalty and the objective: for each penalty at first and after each half-step."""


@method("spap", FINE)
def spap(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Solves which units to prune as a mixed-integer problem, relaxed with a growing penalty.

    Theirs: the new weights V of a projection and the marks s of pruned units minimise
    sum |V x - y|^2 subject to V diag(s) = 0, sum s = number to prune, s binary. The marks are
    relaxed to [0, 1], and the bilinear constraint becomes a penalty. An alternating minimisation
    then updates the weights that remain.

    Ours, as no code and only a part of the text was available: the penalty is quadratic,
    rho sum_u s_u^2 sum_j h_j |v_j|^2 over the inputs j of unit u with h_j the mean square of input
    j over that of all, so that weights and marks are updated in turns and exactly (see
    ``alternate``); rho grows by half each time, until the marks are binary. Then a kept and a
    pruned unit are exchanged while one of the most promising pairs lowers the error. Weights are
    updated by least squares, in gated MLPs down and up projection in turns
    (``repair.gated_mlp``). Targets are the dense model's hidden states after each block. SPAP
    prunes MLPs only; here the output projection of attention is treated the same way. Layers keep
    equal shares.

    Source: Hu & Yuan 2025 (SPAP, arXiv 2505.03373).

    Returns:
        The mask and the refitted weights.

    Raises:
        PruningError: the repair fails.
    """
    return prune_locally(problem, windows, relax_and_exchange, target="stream", alternating=True)


def relax_and_exchange(squares: LeastSquares, keep: int) -> Tensor:
    """Keeps ``keep`` units, chosen by the penalty method and exchanges: (units,) bool."""
    return exchange(squares, alternate(squares, squares.units - keep))


def alternate(squares: LeastSquares, prune: int, record: Record | None = None) -> Tensor:
    """Chooses the units to keep by the penalty method.

    For each penalty rho, the weights V = B (H + rho diag(s_j^2 h_j))^-1 minimise the objective for
    fixed marks, and the marks s_u = min(1, t / c_u), with c_u = sum_j h_j |v_j|^2 and t such that
    they add up, minimise it for fixed weights.

    Args:
        squares: the least squares of a projection.
        prune: how many units to prune.
        record: receives the objective before and after each half-step.

    Returns:
        (units,) bool; the units with the largest marks are pruned.
    """
    kept = squares.everything()
    if not prune:
        return kept
    scale = squares.gram.diagonal() / squares.gram.diagonal().mean()  # h, (inputs,)
    penalty = _FIRST_PENALTY * float(squares.gram.diagonal().mean())
    weight = squares.refit(kept)
    # The masses c are those of all inputs at first, so units with small weights are marked first.
    marks = best_marks(_masses(weight, scale, squares.width), prune)
    for _ in range(_PENALTIES):
        _tell(record, penalty, squares, weight, marks)
        per_input = marks.repeat_interleave(squares.width)  # s, (inputs,)
        weight = _penalised_weight(squares, penalty * per_input.square() * scale)
        _tell(record, penalty, squares, weight, marks)
        marks = best_marks(_masses(weight, scale, squares.width), prune)
        _tell(record, penalty, squares, weight, marks)
        if float(marks.topk(prune).values.sum()) >= _BINARY * prune:
            break
        penalty *= _GROWTH
    kept[marks.argsort(descending=True, stable=True)[:prune]] = False
    return kept


def objective(squares: LeastSquares, weight: Tensor, marks: Tensor, penalty: float) -> float:
    """Computes the penalised error of weights V (outputs, inputs) and marks s (units,).

    It is sum |V x - y|^2 + rho sum_u s_u^2 c_u.
    """
    scale = squares.gram.diagonal() / squares.gram.diagonal().mean()
    # sum |V x - y|^2 = |y|^2 + tr((V H - 2 B) V^T)
    fit = squares.energy + ((weight @ squares.gram - 2 * squares.cross) * weight).sum()
    return float(fit + penalty * marks.square() @ _masses(weight, scale, squares.width))


def best_marks(masses: Tensor, total: int) -> Tensor:
    """Finds the marks in [0, 1] that add up to ``total`` with the smallest sum of s_u^2 c_u.

    They are min(1, t / c_u). In ascending order of c_u the first k are 1; k is the smallest number
    for which t = (total - k) / sum of 1 / c_u over the others leaves these at 1 at most.

    Args:
        masses: c, (units,), not negative.
        total: at most the number of units.
    """
    order = masses.argsort(stable=True)
    rates = 1 / masses[order].clamp(min=float(masses.max()) * 1e-30 + 1e-300)  # descending
    rest = rates.flip(0).cumsum(0).flip(0)  # sums of 1 / c over the units from k on, (units,)
    t = (total - torch.arange(len(rates), device=rates.device)) / rest  # for each k
    # t / c of the k-th unit is above 1 as long as k is too small; count the first run of these.
    ones = int((t * rates > 1).long().cumprod(0).sum())
    marks = torch.ones_like(masses)
    marks[order[ones:]] = t[ones:][:1] * rates[ones:]
    return marks


def exchange(squares: LeastSquares, kept: Tensor) -> Tensor:
    """Exchanges a kept with a pruned unit while that lowers the error.

    Each round tries the three kept units that cost least with the three pruned ones that gain most,
    and takes the best of the nine pairs.

    Args:
        squares: the least squares of a projection.
        kept: where to start, (units,) bool.

    Returns:
        The same number of kept units, (units,) bool.
    """
    if bool(kept.all()) or not bool(kept.any()):
        return kept
    sweep = Sweep(squares)
    sweep.toggle((~kept).nonzero().flatten())
    for _ in range(_EXCHANGES):
        few = min(_SHORTLIST, int(sweep.kept.sum()), int((~sweep.kept).sum()))
        out = sweep.costs().argsort(stable=True)[:few].tolist()
        into = sweep.gains().argsort(descending=True, stable=True)[:few].tolist()
        pairs = list(product(out, into))
        errors = [sweep.error_of_exchange(*pair) for pair in pairs]
        if not min(errors) < sweep.error:
            break
        for unit in pairs[errors.index(min(errors))]:
            sweep.toggle(torch.tensor([unit]))
    return sweep.kept


def _tell(
    record: Record | None, penalty: float, squares: LeastSquares, weight: Tensor, marks: Tensor
) -> None:
    if record is not None:
        record(penalty, objective(squares, weight, marks, penalty))


def _masses(weight: Tensor, scale: Tensor, width: int) -> Tensor:
    """Computes c_u = sum_j h_j |v_j|^2 over the inputs j of each unit: (units,)."""
    return (scale * weight.square().sum(0)).view(-1, width).sum(1)


def _penalised_weight(squares: LeastSquares, penalties: Tensor) -> Tensor:
    """Computes V = B (H + diag(penalties))^-1 for penalties (inputs,): (outputs, inputs)."""
    gram = squares.gram.clone()
    gram.diagonal().add_(penalties)
    return torch.cholesky_solve(squares.cross.T, torch.linalg.cholesky(gram)).T
