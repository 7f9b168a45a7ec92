"""Least squares of the down projections of experts, one expert after another.

With fixed routes, a mixture gives sum_e g_e V_e h_e over the experts e that a token uses: it is
linear in their down projections V_e. All of them together are one least-squares problem, but of as
many inputs as all experts have. Block coordinate descent (Gauss-Seidel) needs the second moments of
one expert at a time: it solves V_e on the tokens that reach e, for what all the others leave, and
goes on to the next expert. No step raises the error, and more sweeps come to the joint solution.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pgprune.repair.least_squares import LeastSquares, SecondMoments
from pgprune.utils.progress import track

SWEEPS = 3  # through all experts


class Tokens(NamedTuple):
    """Tokens that a router has sent to experts.

    Attributes:
        states: what the experts get, (t, D).
        experts: those that a token uses, (t, k) int64.
        weights: g, by which their outputs are added up, (t, k).
        missing: what the output still lacks of the wanted one, (t, D).
        counts: how much each token counts, (t,).
    """

    states: Tensor
    experts: Tensor
    weights: Tensor
    missing: Tensor
    counts: Tensor


class ExpertDescent:
    """The error sum |missing - sum_e (V_e - W_e) g_e h_e|^2 + r sum_e |V_e - W_e|^2.

    Args:
        tokens: chunk by chunk; they may lie on the host.
        dense: W_e by expert, (D, inputs), in at least float32; what is missing is missing with
            these. Other experts stay as they are.
        inputs: computes g h_e of an expert for states (t, D) and weights (t,): (t, inputs).
        name: of the layer, for errors.
    """

    def __init__(
        self,
        tokens: Sequence[Tokens],
        dense: Mapping[int, Tensor],
        inputs: Callable[[int, Tensor, Tensor], Tensor],
        name: str = "a layer",
    ) -> None:
        self._tokens, self._dense, self._inputs, self._name = tokens, dense, inputs, name
        self._scale = self._mean_square()

    def fit(self, damping: float, sweeps: int = SWEEPS) -> dict[int, Tensor]:
        """Finds V_e by expert, (D, inputs); dense weights where no token comes.

        Args:
            damping: r, relative to the mean square of all inputs of all experts. As it is the same
                for all experts, those with few tokens stay near their dense weights.
            sweeps: through all experts.

        Raises:
            PruningError: the activations are not finite, or second moments singular.
        """
        ridge = damping * self._scale
        fitted, left = dict(self._dense), _copied(self._tokens)
        steps = list(fitted) * sweeps
        for expert in track(steps, f"experts of {self._name}", unit="steps"):
            fitted[expert] = fitted[expert] + self._step(expert, fitted[expert], left, ridge)
        return fitted

    def error(self, fitted: Mapping[int, Tensor], tokens: Sequence[Tokens]) -> float:
        """Computes the error of V_e without damping, on the same or on other tokens."""
        left = _copied(tokens)
        for expert, weight in fitted.items():
            _subtract(weight - self._dense[expert], self._rows(expert, left))
        return sum(_weighted_squares(chunk.missing, chunk.counts) for chunk in left)

    def _step(self, expert: int, weight: Tensor, left: Sequence[Tokens], ridge: float) -> Tensor:
        """Solves an expert for what is left, which it changes, and returns the change of V_e."""
        rows = list(self._rows(expert, left))
        if not rows:
            return torch.zeros_like(weight)
        moments = SecondMoments.of(weight)
        for chunk, index, inputs in rows:
            moments.add(inputs, chunk.missing[index], chunk.counts[index])
        problem = LeastSquares(
            moments,
            self._dense[expert] - weight,  # to which the damping draws the change
            ridge=ridge,
            name=f"expert {expert} of {self._name}",
        )
        change = problem.refit(problem.everything()).to(weight)
        _subtract(change, rows)
        return change

    def _rows(
        self, expert: int, tokens: Sequence[Tokens]
    ) -> Iterator[tuple[Tokens, Tensor, Tensor]]:
        """Yields the tokens of an expert: their chunk, their places (u,) in it, and g h (u, F)."""
        like = self._dense[expert]
        for chunk in tokens:
            uses = (chunk.experts == expert) & (chunk.weights != 0)
            index, slot = uses.nonzero(as_tuple=True)
            if len(index):
                sent = chunk.states[index], chunk.weights[index, slot]
                yield chunk, index, self._inputs(expert, *sent).to(like)

    def _mean_square(self) -> float:
        """Computes the mean diagonal of the joint problem's Gram matrix; 1 if it is zero."""
        total = 0.0
        for expert in self._dense:
            for chunk, index, inputs in self._rows(expert, self._tokens):
                total += _weighted_squares(inputs, chunk.counts[index])
        return total / sum(weight.shape[1] for weight in self._dense.values()) or 1.0


def _copied(tokens: Sequence[Tokens]) -> list[Tokens]:
    """Returns tokens whose ``missing`` may be changed in place."""
    return [chunk._replace(missing=chunk.missing.clone()) for chunk in tokens]


def _subtract(change: Tensor, rows: Iterable[tuple[Tokens, Tensor, Tensor]]) -> None:
    """Takes what a change of an expert's weights gives off what is missing."""
    for chunk, index, inputs in rows:
        chunk.missing[index] -= (inputs @ change.T).to(chunk.missing.device)


def _weighted_squares(rows: Tensor, counts: Tensor) -> float:
    """Computes the sum of count times |row|^2 of tokens (t, width)."""
    squares = rows.double().square().sum(1)
    return float((squares * counts.to(squares)).sum())
