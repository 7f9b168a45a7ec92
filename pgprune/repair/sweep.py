"""A least-squares problem swept over its kept units: what each change of the choice costs."""

import torch
from torch import Tensor

from pgprune.repair.least_squares import LeastSquares


class Sweep:
    """The best weights of kept units, with the error that one unit more or less would change.

    With the second moments H of the inputs and those B of targets and inputs, for kept inputs K and
    pruned ones P, it holds

        G = [ -A      A H_KP                  ]     Q = [ W   B_P - W H_KP ],
            [ H_PK A  H_PP - H_PK A H_KP      ]

    with A = H_KK^-1 and the best weights W = B_K A. To keep or prune some units is one sweep
    (Goodnight 1979) of these: products of low rank, where a new solution would take one of full
    rank.

    Args:
        squares: the least squares of a projection; at first all its units are kept.

    Attributes:
        kept: the choice, (units,) bool.
        error: the smallest error of weights that use kept units only.
    """

    def __init__(self, squares: LeastSquares) -> None:
        self.kept = squares.everything()
        inverse = squares.inverse(self.kept)
        self._squares = squares
        self._moments = -inverse  # G, (inputs, inputs)
        self._weights = squares.cross @ inverse  # Q, (outputs, inputs)
        self.error = squares.energy - float((self._weights * squares.cross).sum())

    def copy(self) -> "Sweep":
        """Returns a copy, to try changes on."""
        other = object.__new__(Sweep)
        other._squares, other.error = self._squares, self.error
        other.kept = self.kept.clone()
        other._moments, other._weights = self._moments.clone(), self._weights.clone()
        return other

    def costs(self) -> Tensor:
        """Computes the rise of the error without each kept unit, (units,); infinite for others."""
        return self._changes().where(self.kept, torch.inf)

    def gains(self) -> Tensor:
        """Computes the fall of the error with each pruned unit, (units,); -infinity for others."""
        return self._changes().where(~self.kept, -torch.inf)

    def contributions(self) -> Tensor:
        """Computes what each kept unit's weights give of the targets, (units,): tr(W_u B_u^T).

        The error is the energy of the targets less the sum of these.
        """
        parts = (self._weights * self._squares.cross).sum(0)  # (inputs,)
        return parts.view(self._squares.units, -1).sum(1).where(self.kept, 0)

    def toggle(self, units: Tensor) -> None:
        """Prunes some kept units, or keeps some pruned ones: their indices, (u,)."""
        if not len(units):
            return
        sign = -1 if self.kept[units[0]] else 1
        index = self._inputs(units)  # S
        rows = self._moments.index_select(0, index)  # G_S:, (s, inputs)
        factor = torch.linalg.cholesky(sign * rows.index_select(1, index))  # of M = +-G_SS
        solved = torch.cholesky_solve(rows, factor)  # M^-1 G_S:
        columns = self._weights.index_select(1, index)  # Q_S, (outputs, s)
        weights = torch.cholesky_solve(columns.T, factor).T  # Q_S M^-1
        self.error -= sign * float((weights * columns).sum())
        self._weights.addmm_(columns, solved, alpha=-sign).index_copy_(1, index, weights)
        self._moments.addmm_(rows.T, solved, alpha=-sign)
        solved.index_copy_(1, index, -sign * torch.cholesky_inverse(factor))
        self._moments.index_copy_(0, index, solved).index_copy_(1, index, solved.T)
        self.kept[units] = sign > 0

    def error_of_exchange(self, pruned: int, kept: int) -> float:
        """Computes the error if a kept unit is pruned and then a pruned one is kept.

        Args:
            pruned: the kept unit i, with the rise tr(W_i A_ii^-1 W_i^T).
            kept: the pruned unit j, whose moments and weights are then G_jj + G_ji A_ii^-1 G_ij and
                Q_j + W_i A_ii^-1 G_ij.
        """
        out, into = (self._inputs(torch.tensor([unit])) for unit in (pruned, kept))
        moments, weights = self._moments, self._weights
        across = moments[out[:, None], into]  # G_ij, (width, width)
        block = -moments[out[:, None], out]  # A_ii
        removed = weights[:, out]  # W_i, (outputs, width)
        rise = (torch.linalg.solve(block, removed.T).T * removed).sum()
        step = torch.linalg.solve(block, across)  # A_ii^-1 G_ij
        added = weights[:, into] + removed @ step
        schur = moments[into[:, None], into] + across.T @ step
        return self.error + float(rise - (torch.linalg.solve(schur, added.T).T * added).sum())

    def _changes(self) -> Tensor:
        """Computes tr(Q_u M_u^-1 Q_u^T) of each unit u, (units,), for M_u = +-G_uu."""
        units, width = self._squares.units, self._squares.width
        if width == 1:
            return self._weights.square().sum(0) / self._moments.diagonal().abs()
        blocks = self._moments.view(units, width, units, width).diagonal(dim1=0, dim2=2)
        signs = torch.where(self.kept, -1.0, 1.0).to(blocks)[:, None, None]
        blocks = signs * blocks.permute(2, 0, 1)  # (units, width, width)
        columns = self._weights.view(-1, units, width).permute(1, 2, 0)  # (units, width, outputs)
        return (torch.linalg.solve(blocks, columns) * columns).sum((1, 2))

    def _inputs(self, units: Tensor) -> Tensor:
        """Returns the indices of the inputs of units (u,): (u * width,)."""
        width, device = self._squares.width, self._moments.device
        first = units.to(device)[:, None] * width
        return (first + torch.arange(width, device=device)).flatten()
