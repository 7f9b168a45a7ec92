"""OSSCAR: removes units in batches with exact refits, then swaps kept and pruned units."""

import math

import torch
from torch import Tensor

from pgprune.masking.problem import Problem
from pgprune.methods.base import MethodConfig, Pruned, method
from pgprune.methods.local_solver import prune_locally
from pgprune.metrics.base import FINE
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.removal import removal_costs

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
    return swap(squares, remove_in_batches(squares, keep))


def remove_in_batches(squares: LeastSquares, keep: int, stages: int = _STAGES) -> Tensor:
    """Removes units in nearly equal batches, each time the cheapest ones: (units,) bool."""
    kept = squares.everything()
    batch = math.ceil((squares.units - keep) / stages)
    while (left := int(kept.sum()) - keep) > 0:
        cheapest = costs_of_kept(squares, kept).argsort(stable=True)
        kept[cheapest[: min(batch, left)]] = False
    return kept


def swap(squares: LeastSquares, kept: Tensor) -> Tensor:
    """Swaps kept units (units,) bool with as many pruned ones while the error falls."""
    error = squares.error(kept)
    swaps = min(_SWAPS, int(kept.sum()), int((~kept).sum()))
    for _ in range(_ROUNDS):
        if not swaps:
            break
        trial = kept.clone()
        trial[costs_of_kept(squares, kept).argsort(stable=True)[:swaps]] = False
        trial[gains_of_pruned(squares, kept).argsort(descending=True, stable=True)[:swaps]] = True
        trial_error = squares.error(trial)
        if trial_error < error:
            kept, error = trial, trial_error
        else:
            swaps //= 2  # costs and gains hold for single swaps; together they may interfere
    return kept


def costs_of_kept(squares: LeastSquares, kept: Tensor) -> Tensor:
    """Computes the rise of the error without each kept unit, (units,); infinite for the others."""
    inverse = squares.inverse(kept)
    return removal_costs(squares.cross @ inverse, inverse, kept)


def gains_of_pruned(squares: LeastSquares, kept: Tensor) -> Tensor:
    """Computes the fall of the error with each pruned unit, (units,); -infinity for the others.

    H are the second moments of the inputs and B those of targets and inputs. With the residual
    correlation R = B - V H of the best weights V for the kept inputs K, and the Schur complement
    C = H_SS - H_SK H_KK^-1 H_KS of the unit's inputs S, the fall is tr(R_S C^-1 R_S^T).
    """
    units, width = squares.units, squares.width
    pruned = ~kept
    correlation = squares.cross - squares.refit(kept) @ squares.gram  # R, (outputs, inputs)
    columns = correlation.view(-1, units, width).permute(1, 2, 0)[pruned]  # (p, width, outputs)
    index = squares.inputs(kept)  # K
    rows = squares.inputs(pruned)  # all S, one after the other
    # With the Cholesky factor L L^T = H_KK, H_SK H_KK^-1 H_KS = A^T A for A = L^-1 H_KS.
    across = torch.linalg.solve_triangular(
        squares.factor(index), squares.gram[index[:, None], rows], upper=False
    ).view(len(index), -1, width)  # (kept inputs, p, width)
    blocks = squares.gram.view(units, width, units, width).diagonal(dim1=0, dim2=2)  # H_SS of all
    blocks = blocks.permute(2, 0, 1)  # (units, width, width)
    schur = blocks[pruned] - torch.einsum("kpv,kpw->pvw", across, across)
    gains = torch.full((units,), -torch.inf, dtype=schur.dtype, device=schur.device)
    # tr(R_S C^-1 R_S^T), one sum of products for each pruned unit
    gains[pruned] = (torch.linalg.solve(schur, columns) * columns).sum((1, 2))
    return gains
