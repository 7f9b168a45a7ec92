"""FASP: prunes columns with low Wanda scores and refits the others by least squares."""

from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.metrics.base import FINE
from pgprune.metrics.fasp import score_and_refit


@method("fasp", FINE)
def fasp(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Prunes the columns with the lowest Wanda scores, and refits the others.

    The score of input j of an output or down projection is sum_i |W_ij| |x_j|, summed over the
    inputs of a unit. Every layer keeps its share of each kind, and each projection is refitted
    before the next one is scored, so that it gives what the dense weights give for its inputs.

    Source: Hu et al. 2025 (FASP; no code is published, known from its abstract and reviews). FASP
    drops value rows and output columns one by one and keeps queries and keys; here whole kv groups
    are pruned, as everywhere in this package, and MLP channels as there. Least squares are damped a
    little, and fit the bias too where there is one.

    Returns:
        The mask, the scores, which compare within a layer, and the refitted weights.

    Raises:
        PruningError: the repair fails.
    """
    importance, repair = score_and_refit(problem.lm, windows, problem.budget)
    return Pruned(importance.mask(problem.budget), importance, repair)
