"""Removes the units of a projection one by one, in the order of least cost."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pgprune.repair.least_squares import LeastSquares
from pgprune.utils.progress import track

_TOGETHER = 32  # inputs whose removal is carried out by one product of matrices


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
    steps = _with_refit(squares) if refit else _without_refit(squares)
    return track(steps, "removals", squares.units)


def _with_refit(squares: LeastSquares) -> Iterator[tuple[int, float]]:
    """Yields units in the order of A = H^-1 and N = W^T W, all that costs depend on.

    Without S, for A_SS = L L^T, U = L^-1 A_S:, V = L^-1 N_S: and P = V - (V_S L^-T) U / 2, they are

        A - U^T U    and    N - P^T U - U^T P.

    These products are carried out for many units together, and only for the units that are left.
    Until then, the rows of a unit are brought up to date when it is removed, and the diagonal
    blocks, which give the costs, after each removal.
    """
    width, left = squares.width, torch.arange(squares.units)
    inverse = squares.inverse(squares.everything())  # A, (inputs, inputs)
    weight = squares.cross @ inverse  # W, (outputs, inputs)
    products = weight.T @ weight  # N, (inputs, inputs)
    while len(left):
        batch = min(max(1, _TOGETHER // width), len(left))
        # U below P, and P below U: (2, batch * width, inputs)
        steps = inverse.new_zeros(2, batch * width, len(inverse))
        blocks = [_diagonal_blocks(matrix, width) for matrix in (inverse, products)]
        kept = torch.ones(len(left), dtype=torch.bool, device=inverse.device)
        for first in range(0, batch * width, width):
            costs = _costs(*blocks).where(kept, torch.inf)
            unit = int(costs.argmin())
            yield int(left[unit]), float(costs[unit])
            kept[unit] = False
            here, past = slice(unit * width, (unit + 1) * width), steps[:, :first]
            u, p = past  # of the units before, (first, inputs)
            factor = torch.linalg.cholesky(inverse[here, here] - u[:, here].T @ u[:, here])  # L
            new_u = _solve(factor, inverse[here] - u[:, here].T @ u)  # U, (width, inputs)
            new_v = _solve(factor, products[here] - p[:, here].T @ u - u[:, here].T @ p)  # V
            new_p = new_v - _solve(factor, new_v[:, here].T).T @ new_u / 2
            steps[0, first : first + width], steps[1, first : first + width] = new_u, new_p
            across = _by_unit(new_p, width) @ _by_unit(new_u, width).mT  # (units, width, width)
            blocks[0] -= _by_unit(new_u, width) @ _by_unit(new_u, width).mT
            blocks[1] -= across + across.mT
            blocks[0][unit] = torch.eye(width).to(inverse)  # it is zero up to rounding
        rows = kept.repeat_interleave(width).nonzero().flatten()
        u, p = steps.index_select(2, rows)
        inverse, products = (
            matrix.index_select(0, rows).index_select(1, rows) for matrix in (inverse, products)
        )
        inverse.addmm_(u.T, u, alpha=-1)
        products.addmm_(p.T, u, alpha=-1).addmm_(u.T, p, alpha=-1)
        left = left[kept.cpu()]


def _costs(inverse: Tensor, products: Tensor) -> Tensor:
    """Computes tr(A_SS^-1 N_SS) of diagonal blocks (units, width, width): (units,)."""
    if inverse.shape[1] == 1:
        return (products / inverse).flatten()
    return torch.linalg.solve(inverse, products).diagonal(dim1=1, dim2=2).sum(1)


def _diagonal_blocks(matrix: Tensor, width: int) -> Tensor:
    """Copies the diagonal blocks of a matrix (inputs, inputs): (units, width, width)."""
    units = len(matrix) // width
    blocks = matrix.view(units, width, units, width).diagonal(dim1=0, dim2=2)
    return blocks.permute(2, 0, 1).contiguous()


def _by_unit(rows: Tensor, width: int) -> Tensor:
    """Arranges rows (r, inputs) by unit: (units, width, r)."""
    return rows.view(len(rows), -1, width).permute(1, 2, 0)


def _solve(factor: Tensor, rows: Tensor) -> Tensor:
    """Computes L^-1 times rows (width, inputs)."""
    return torch.linalg.solve_triangular(factor, rows, upper=False)


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
