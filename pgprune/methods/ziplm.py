"""ZipLM: greedy optimal-brain-surgeon removal, one structure at a time."""

import torch
from torch import Tensor

from pgprune.methods.base import MethodConfig, Pruned
from pgprune.methods.local_solver import prune_locally
from pgprune.problem import Problem
from pgprune.second_moments import LeastSquares


def ziplm(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """ZipLM's layer-wise solver: always remove the unit that the others can replace best.

    With the weights W that fit best and the inverse H^-1 of the inputs' second moments, removing
    the inputs S of a unit raises the squared error of a projection's output by
    tr(W_S ([H^-1]_SS)^-1 W_S^T) if all other inputs are refitted. The unit with the smallest such
    cost goes, weights and inverse are updated for the rest, and so on until each layer keeps its
    share of each kind.

    Source: Kurtic et al. 2023 (ZipLM), after Hassibi & Stork 1993; the formulas as in the released
    code of DarwinLM. Here a unit is a kv group or a channel; ZipLM's search for shares by latency
    is not part of this.

    Args:
        problem: the frozen model, whose units must be heads, channels or both, and the budget.
        windows: calibration token ids, (N, T).
        seed: unused; the method is deterministic.
        config: not used.

    Returns:
        The mask and the refitted weights.

    Raises:
        PruningError: the units are blocks or layers, or the repair fails.
    """
    return prune_locally("ziplm", problem, windows, remove_greedily)


def remove_greedily(squares: LeastSquares, keep: int) -> Tensor:
    """Removes units one by one until so many are kept: (units,) bool."""
    kept = squares.everything()
    weight, inverse = squares.refit(kept), squares.inverse(kept)
    for _ in range(squares.units - keep):
        unit = int(removal_costs(weight, inverse, kept).argmin())
        here = slice(unit * squares.width, (unit + 1) * squares.width)
        step = torch.linalg.solve(inverse[here, here], inverse[here])  # (width, inputs)
        weight -= weight[:, here].clone() @ step
        inverse -= inverse[:, here].clone() @ step
        # What cancels is set to zero exactly, so that rounding errors do not grow.
        weight[:, here] = inverse[here] = inverse[:, here] = 0
        kept[unit] = False
    return kept


def removal_costs(weight: Tensor, inverse: Tensor, kept: Tensor) -> Tensor:
    """How much the error rises without each unit if all others are refitted.

    Args:
        weight: the best weights for the kept units, (outputs, inputs).
        inverse: of the kept inputs' second moments, (inputs, inputs), zero elsewhere.
        kept: (units,) bool.

    Returns:
        (units,) float64, infinite for units that are not kept.
    """
    units, width = len(kept), len(inverse) // len(kept)
    blocks = inverse.view(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    blocks = torch.where(kept[:, None, None], blocks, torch.eye(width).to(inverse))
    columns = weight.view(-1, units, width).permute(1, 2, 0)  # (units, width, outputs)
    costs = (torch.linalg.solve(blocks, columns) * columns).sum((1, 2))
    return costs.where(kept, torch.inf)
