"""Refits the down and up projections of a gated MLP in turns.

With a fixed gate g, the output V (g * U z) of a gated MLP is linear in its down projection V for a
fixed up projection U, and linear in U for a fixed V. So V is solved exactly from second moments,
and U by a few steps of preconditioned conjugate gradients, in turns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pgprune.repair.least_squares import LeastSquares, SecondMoments

ROUNDS = 3  # each solves for V, then for U
STEPS = 8  # of conjugate gradients for U in a round


class Tokens(NamedTuple):
    """The inputs of an MLP for some tokens, and its targets.

    Attributes:
        inputs: z, inputs of the up projection, (tokens, inputs); ones at the end if it has a bias.
        gates: g, the factors of its outputs, (tokens, channels); kept channels only.
        targets: y, wanted outputs of the down projection, (tokens, outputs).
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
        damping: r and q, relative to the mean diagonals of the two problems at dense weights.
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
        # With b, the error is that of differences from means; an infinite count makes means zero.
        count = sum(len(chunk.inputs) for chunk in tokens) if biased else torch.inf
        self._mean = self._sum(lambda c: c.gates.T @ c.inputs) / count  # (channels, inputs)
        self._target = self._sum(lambda c: c.targets.sum(0)) / count
        self._sizes = self._sum(lambda c: c.gates.square().T @ c.inputs.square())
        self._ridge = damping * float((down.square().sum(0) @ self._sizes).mean() / len(up))
        self._start = self._down_problem(up)

    def fit(
        self, rounds: int = ROUNDS, record: Callable[[float], None] | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Solves for V and U in turns, and finally for V and b.

        Args:
            rounds: number of solutions for U.
            record: called with the error after each half-step.

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
            up = self.solve_up(up, down)
            if record:
                record(self.error(up, down))
            squares = self._down_problem(up, squares.ridge)
        solved = squares.refit(squares.everything())
        return up, solved, squares.bias(solved)

    def error(self, up: Tensor, down: Tensor) -> float:
        """Computes the error of U (channels, inputs) and V (outputs, channels) with the best b."""
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

    def solve_up(self, up: Tensor, down: Tensor, steps: int = STEPS) -> Tensor:
        """Improves U for fixed V by preconditioned conjugate gradients: (channels, inputs).

        Solves A(U) = B with A(U) = sum V^T V (h - mean h) g z^T + q U for h = g * U z, and
        B = sum V^T (y - mean y) g z^T + q U0.

        Args:
            up: U to start from, (channels, inputs).
            down: V, (outputs, channels).
            steps: of conjugate gradients.
        """
        product = down.T @ down  # (channels, channels)
        # The diagonal of A: |v_c|^2 sum_t g_tc^2 z_ti^2 + q (Jacobi preconditioner).
        diagonal = product.diagonal()[:, None] * self._sizes + self._ridge
        diagonal = diagonal.clamp(min=torch.finfo(diagonal.dtype).tiny)

        def curvature(direction: Tensor) -> Tensor:
            mean = (direction * self._mean).sum(1)  # of h, (channels,)
            return self._ridge * direction + self._sum(
                lambda c: ((self._channels(direction, c) - mean) @ product * c.gates).T @ c.inputs
            )

        wanted = self._sum(lambda c: ((c.targets - self._target) @ down * c.gates).T @ c.inputs)
        residual = wanted + self._ridge * self._up - curvature(up)
        direction = residual / diagonal
        slope = (residual * direction).sum()
        for _ in range(steps):
            if not slope > 0:  # solved
                break
            curved = curvature(direction)
            length = slope / (direction * curved).sum()  # to the minimum along the direction
            up = up + length * direction
            residual = residual - length * curved
            new = (residual * residual / diagonal).sum()
            direction = residual / diagonal + new / slope * direction  # conjugate to the last
            slope = new
        return up

    def _channels(self, up: Tensor, chunk: Tokens) -> Tensor:
        """Computes the inputs of the down projection, g * U z, (tokens, channels)."""
        return chunk.gates * (chunk.inputs @ up.T)

    def _sum(self, of_chunk: Callable[[Tokens], Tensor]) -> Tensor:
        """Adds up a function of chunks."""
        return sum(map(of_chunk, self._tokens[1:]), of_chunk(self._tokens[0]))


@contextmanager
def giving_ones(linear: nn.Linear) -> Iterator[list[Tensor]]:
    """Lets a projection return ones while the body runs, and yields a list of its inputs."""
    seen: list[Tensor] = []

    def replace(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(args[0])
        return torch.ones_like(output)

    hook = linear.register_forward_hook(replace)
    try:
        yield seen
    finally:
        hook.remove()
