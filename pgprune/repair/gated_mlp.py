"""Gated MLPs: the down and the up projection refitted in turns.

Behind a fixed gate g the output V (g * U z) of a gated MLP is linear in its down projection V for a
fixed up projection U, and in U for fixed V. So its squared error splits: V is solved exactly from
second moments, U by some steps of preconditioned conjugate gradients, and so on in turns.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pgprune.repair.least_squares import LeastSquares, SecondMoments

ROUNDS = 3  # each solves for V, then for U
STEPS = 8  # of conjugate gradients for U


class Tokens(NamedTuple):
    """What an MLP gets for some tokens, and what it should give.

    Attributes:
        inputs: z, what the up projection gets, (tokens, inputs); ones at the end if it has a bias.
        gates: g, what its outputs are multiplied by, (tokens, channels); kept channels only.
        targets: y, what the down projection should give, (tokens, outputs).
    """

    inputs: Tensor
    gates: Tensor
    targets: Tensor


class GatedMLP:
    """The error sum |V (g * U z) + b - y|^2 + r |V - V0|^2 + q |U - U0|^2.

    Args:
        tokens: all tokens, chunk by chunk, of one floating-point type.
        up: U0, the dense weights, (channels, inputs), of the same type.
        down: V0, the dense weights, (outputs, channels), of the same type.
        damping: r and q, relative to the mean diagonals of the problems that dense weights pose.
        biased: whether there is a b, which is fitted with V.
        name: of the MLP, for errors.
    """

    def __init__(
        self,
        tokens: list[Tokens],
        up: Tensor,
        down: Tensor,
        damping: float,
        biased: bool = False,
        name: str = "an MLP",
    ) -> None:
        self._tokens, self._up, self._down = tokens, up, down
        self._damping, self._biased, self._name = damping, biased, name
        count = sum(len(chunk.inputs) for chunk in tokens) if biased else torch.inf
        self._mean = self._sum(lambda c: c.gates.T @ c.inputs) / count  # of g z^T; 0 without b
        self._target = self._sum(lambda c: c.targets.sum(0)) / count
        self._sizes = self._sum(lambda c: c.gates.square().T @ c.inputs.square())
        self._ridge = damping * float((down.square().sum(0) @ self._sizes).mean() / len(up))
        self._start = self._down_problem(up)

    def fit(
        self, rounds: int = ROUNDS, record: Callable[[float], None] | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Solves for V and U in turns, at last for V and b.

        Args:
            rounds: how often U is solved for.
            record: told the error after each half-step.

        Returns:
            U (channels, inputs), V (outputs, channels) float64 and b (outputs,) float64 or None.

        Raises:
            PruningError: the activations are not finite, or second moments singular.
        """
        up, squares = self._up, self._start
        for _ in range(rounds):
            down = squares.refit(squares.everything()).to(up)
            if record:
                record(self.error(up, down))
            up = self._solve_up(up, down)
            if record:
                record(self.error(up, down))
            squares = self._down_problem(up, squares.ridge)
        solved = squares.refit(squares.everything())
        return up, solved, squares.bias(solved)

    def error(self, up: Tensor, down: Tensor) -> float:
        """The error of U (channels, inputs) and V (outputs, channels) with the best b."""
        left = [self._channels(up, chunk) @ down.T - chunk.targets for chunk in self._tokens]
        rows = torch.cat(left).double()
        if self._biased:
            rows -= rows.mean(0)
        damped = self._start.ridge * (down - self._down).square().sum()
        return float(rows.square().sum() + damped + self._ridge * (up - self._up).square().sum())

    def _down_problem(self, up: Tensor, ridge: float | None = None) -> LeastSquares:
        moments = SecondMoments.of(self._down)
        for chunk in self._tokens:
            moments.add(self._channels(up, chunk), chunk.targets)
        return LeastSquares(
            moments,
            self._down,
            damping=self._damping,
            ridge=ridge,
            biased=self._biased,
            name=self._name,
        )

    def _solve_up(self, up: Tensor, down: Tensor) -> Tensor:
        """Improves U for fixed V by preconditioned conjugate gradients: (channels, inputs)."""
        product = down.T @ down  # (channels, channels)
        diagonal = product.diagonal()[:, None] * self._sizes + self._ridge
        diagonal = diagonal.clamp(min=torch.finfo(diagonal.dtype).tiny)

        def curvature(direction: Tensor) -> Tensor:
            mean = (direction * self._mean).sum(1)

            def part(chunk: Tokens) -> Tensor:
                return (
                    (self._channels(direction, chunk) - mean) @ product * chunk.gates
                ).T @ chunk.inputs

            return self._sum(part) + self._ridge * direction

        wanted = self._sum(lambda c: ((c.targets - self._target) @ down * c.gates).T @ c.inputs)
        residual = wanted + self._ridge * self._up - curvature(up)
        direction = residual / diagonal
        slope = (residual * direction).sum()
        for _ in range(STEPS):
            if not slope > 0:  # solved
                break
            curved = curvature(direction)
            length = slope / (direction * curved).sum()
            up = up + length * direction
            residual = residual - length * curved
            new = (residual * residual / diagonal).sum()
            direction = residual / diagonal + new / slope * direction
            slope = new
        return up

    def _channels(self, up: Tensor, chunk: Tokens) -> Tensor:
        """What the down projection gets, (tokens, channels)."""
        return chunk.gates * (chunk.inputs @ up.T)

    def _sum(self, part: Callable[[Tokens], Tensor]) -> Tensor:
        """The sum over chunks."""
        total = part(self._tokens[0])
        for chunk in self._tokens[1:]:
            total = total + part(chunk)
        return total
