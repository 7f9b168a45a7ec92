"""ZipLM: removes units one at a time by the optimal brain surgeon."""

from itertools import islice

from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.methods.common.local_solver import prune_locally
from pgprune.metrics.base import FINE
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.removal import removals


@method("ziplm", FINE)
def ziplm(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Removes, layer by layer, always the unit that the others can replace best.

    With the weights W that fit best and the inverse H^-1 of the inputs' second moments, removing
    the inputs S of a unit raises the squared error of a projection's output by
    tr(W_S ([H^-1]_SS)^-1 W_S^T) if all other inputs are refitted. The unit with the
    smallest cost is removed, and weights and inverse are updated for the rest, until each layer
    keeps its share of each kind.

    Source: Kurtic et al. 2023 (ZipLM), after Hassibi & Stork 1993; the formulas as in the released
    code of DarwinLM. Here a unit is a kv group or a channel; ZipLM's search for shares by latency
    is not part of this.

    Returns:
        The mask and the refitted weights.

    Raises:
        PruningError: the repair fails.
    """
    return prune_locally(problem, windows, remove_greedily)


def remove_greedily(squares: LeastSquares, keep: int) -> Tensor:
    """Removes units one by one until ``keep`` are left: (units,) bool."""
    kept = squares.everything()
    for unit, _ in islice(removals(squares), squares.units - keep):
        kept[unit] = False
    return kept
