"""OSSCAR: removes units in batches with exact refits, then swaps kept and pruned units."""

import math

from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.methods.common.local_solver import prune_locally
from pgprune.metrics.base import FINE
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.sweep import Sweep

_STAGES = 20  # batches of removal
_SWAPS = 100  # units swapped in the first round, as in the paper's code
_ROUNDS = 20  # of swaps, at most, as there


@method("osscar", FINE)
def osscar(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Removes the cheapest units in batches, then swaps the worst kept and best pruned units.

    Removal costs are as in ZipLM, but a batch is removed at once and the rest is then refitted
    exactly. The local search swaps the t kept units that cost least with the t pruned units that
    would lower the error most, as long as the error falls; where it does not, t is halved.

    Source: Meng et al. 2024 (mazumder-lab/OSSCAR), whose code knows OPT only; 20 rounds of swaps
    that begin with 100 units are theirs, removal in 20 batches is ours.

    Returns:
        The mask and the refitted weights.

    Raises:
        PruningError: the repair fails.
    """
    return prune_locally(problem, windows, remove_and_swap)


def remove_and_swap(squares: LeastSquares, keep: int) -> Tensor:
    """Removes units in batches until ``keep`` are left, then swaps: (units,) bool."""
    sweep = Sweep(squares)
    remove_in_batches(sweep, keep)
    return swap(sweep).kept


def remove_in_batches(sweep: Sweep, keep: int, stages: int = _STAGES) -> None:
    """Removes units in nearly equal batches, each time the cheapest ones."""
    batch = math.ceil((len(sweep.kept) - keep) / stages)
    while (left := int(sweep.kept.sum()) - keep) > 0:
        sweep.toggle(sweep.costs().argsort(stable=True)[: min(batch, left)])


def swap(sweep: Sweep) -> Sweep:
    """Swaps kept units with as many pruned ones while the error falls, and returns the best."""
    swaps = min(_SWAPS, int(sweep.kept.sum()), int((~sweep.kept).sum()))
    for _ in range(_ROUNDS):
        if not swaps:
            break
        trial = sweep.copy()
        trial.toggle(sweep.costs().argsort(stable=True)[:swaps])
        trial.toggle(sweep.gains().argsort(descending=True, stable=True)[:swaps])
        if trial.error < sweep.error:
            sweep = trial
        else:
            swaps //= 2  # costs and gains hold for single swaps; together they may interfere
    return sweep
