"""FASP: Wanda's scores of whole columns, on a model that is refitted as it is pruned."""

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import Group
from pgprune.metrics.base import FINE, metric
from pgprune.metrics.importance import Importance
from pgprune.repair.fit import choose_and_refit
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.repair import Repair


@metric("fasp", FINE, by_rate=True)
def fasp(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Computes the scores of FASP without its weights, see ``pgprune.methods.fasp``.

    Raises:
        PruningError: the repair fails.
    """
    importance, _ = score_and_refit(lm, windows, budget)
    return importance


def score_and_refit(lm: MaskedLM, windows: Tensor, budget: Budget) -> tuple[Importance, Repair]:
    """Scores, prunes and refits one projection after the other, on the ones refitted before.

    Args:
        lm: the frozen model; its units must be heads, channels or both.
        windows: calibration token ids, (N, T).
        budget: how much to keep; every layer keeps its share of each kind.

    Raises:
        PruningError: the repair fails.
    """
    local = budget.local()
    scores = torch.zeros(lm.units.n, dtype=torch.float64)

    def choose(squares: LeastSquares, group: Group) -> Tensor:
        here = slice(group.start, group.stop)
        scores[here] = column_scores(squares).cpu()
        # Local rounding of a group reads this group's scores only, so others may be missing.
        return local.round(scores)[here].bool()

    _, repair = choose_and_refit(lm, windows, choose)
    return Importance(scores, local=True), repair


def column_scores(squares: LeastSquares) -> Tensor:
    """Computes Wanda's score of each unit: sum of |W_ij| |x_j| over outputs i and its inputs j.

    |x_j| is the norm of input j over tokens. Returns (units,).
    """
    columns = squares.weight.abs().sum(0) * squares.squares.sqrt()  # (inputs,)
    return columns.view(-1, squares.width).sum(1)
