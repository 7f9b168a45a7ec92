"""Removes the units of a projection one by one, in the order of least cost."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pgprune.repair.least_squares import LeastSquares


def removals(squares: LeastSquares, refit: bool = True) -> Iterator[tuple[int, float]]:
    """Yields all units of a projection, the cheapest to remove first, with the rise of the error.

    With the weights W that fit best and the inverse H^-1 of the inputs' second moments, removing
    the inputs S of a unit raises the squared error of the output by tr(W_S ([H^-1]_SS)^-1 W_S^T) if
    all other inputs are refitted (Hassibi & Stork 1993). Weights and inverse are then updated for
    the remaining inputs. Without refitting, the error is the squared sum of all removed outputs.

    Args:
        squares: the projection's least-squares problem.
        refit: whether the other units' weights are refitted after each removal.
    """
    return _with_refit(squares) if refit else _without_refit(squares)


def removal_costs(weight: Tensor, inverse: Tensor, kept: Tensor) -> Tensor:
    """Computes the increase of the error without each unit if all others are refitted.

    Args:
        weight: the best weights for the kept units, (outputs, inputs).
        inverse: of the kept inputs' second moments, (inputs, inputs), zero elsewhere.
        kept: (units,) bool.

    Returns:
        (units,) float64, infinite for units that are not kept.
    """
    units, width = len(kept), len(inverse) // len(kept)
    # The diagonal blocks [H^-1]_SS, (units, width, width); identities for units that are gone.
    blocks = inverse.view(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    blocks = torch.where(kept[:, None, None], blocks, torch.eye(width).to(inverse))
    columns = weight.view(-1, units, width).permute(1, 2, 0)  # (units, width, outputs)
    costs = (torch.linalg.solve(blocks, columns) * columns).sum((1, 2))
    return costs.where(kept, torch.inf)


def _with_refit(squares: LeastSquares) -> Iterator[tuple[int, float]]:
    kept = squares.everything()
    weight, inverse = squares.refit(kept), squares.inverse(kept)
    for _ in range(squares.units):
        costs = removal_costs(weight, inverse, kept)
        unit = int(costs.argmin())
        yield unit, float(costs[unit])
        here = slice(unit * squares.width, (unit + 1) * squares.width)
        # W -= W_S ([H^-1]_SS)^-1 [H^-1]_S: and likewise for the inverse (block elimination).
        step = torch.linalg.solve(inverse[here, here], inverse[here])  # (width, inputs)
        weight -= weight[:, here].clone() @ step
        inverse -= inverse[:, here].clone() @ step
        # These cancel up to rounding. Exact zeros keep the rounding errors from growing.
        weight[:, here] = inverse[here] = inverse[:, here] = 0
        kept[unit] = False


def _without_refit(squares: LeastSquares) -> Iterator[tuple[int, float]]:
    # Removing inputs i and j costs |w_i x_i + w_j x_j|^2: their cross term is G_ij w_i^T w_j.
    shared = squares.gram * (squares.weight.T @ squares.weight)  # (inputs, inputs)
    shape = (squares.units, squares.width, squares.units, squares.width)
    shared = shared.view(shape).sum((1, 3))  # (units, units)
    costs = shared.diagonal().clone()
    for _ in range(squares.units):
        unit = int(costs.argmin())
        yield unit, float(costs[unit])
        costs += 2 * shared[unit]
        costs[unit] = torch.inf
