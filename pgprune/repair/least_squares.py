"""Second moments of a projection's inputs, and the least-squares problem of its weights.

A projection that loses inputs should still give the targets y: minimise over its weights V the sum
over tokens of |V x - y|^2. The solution V = (sum y x^T) (sum x x^T)^-1 needs only these sums, so
memory does not grow with the text. Products of some thousand tokens are computed in at least
float32, sums of these and solutions in float64. x x^T is symmetric, so only blocks on and below the
diagonal are computed.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.masking.layer_mask import by_unit

_LEAST_ROWS = 64
_BLOCKS = 4  # of rows of x x^T: with m of them, (m + 1) / 2m of the products are computed


@dataclass
class SecondMoments:
    """Sums over tokens of the products of inputs x and targets y.

    Attributes:
        lower: sum of x x^T in blocks on and below the diagonal, (inputs, inputs) float64.
        cross: sum of y x^T, (outputs, inputs) float64.
        inputs: sum of x, (inputs,) float64.
        targets: sum of y, (outputs,) float64.
        energy: sum of |y|^2, () float64.
        tokens: number of tokens, or the sum of their weights.
    """

    lower: Tensor
    cross: Tensor
    inputs: Tensor
    targets: Tensor
    energy: Tensor
    tokens: float = 0

    @classmethod
    def of(cls, weight: Tensor) -> "SecondMoments":
        """Returns moments of no tokens for a weight (outputs, inputs), on its device."""
        outputs, inputs = weight.shape
        # Apple's GPUs have no float64.
        device = torch.device("cpu") if weight.device.type == "mps" else weight.device
        zeros = torch.zeros(0, dtype=torch.float64, device=device).new_zeros
        return cls(
            zeros(inputs, inputs), zeros(weight.shape), zeros(inputs), zeros(outputs), zeros(())
        )

    @property
    def gram(self) -> Tensor:
        """Sum of x x^T, (inputs, inputs) float64."""
        gram = self.lower.tril()
        return gram.add_(gram.tril(-1).T)

    def ordered(self, order: Tensor) -> "SecondMoments":
        """Returns the moments of the inputs in another order, (inputs,)."""
        order = order.to(self.lower.device)
        gram = self.gram[order[:, None], order]
        return replace(self, lower=gram, cross=self.cross[:, order], inputs=self.inputs[order])

    def add(
        self, inputs: Tensor, targets: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """Adds tokens.

        Args:
            inputs: x, (..., inputs).
            targets: y, (..., outputs); without them, call ``set_outputs``.
            weights: how often each token counts, (...); once by default.
        """
        wide = torch.promote_types(inputs.dtype, torch.float32)
        x = inputs.flatten(0, -2).to(self.lower.device, wide)  # (tokens, inputs)
        y = None if targets is None else targets.flatten(0, -2).to(self.lower.device, wide)
        if weights is None:
            self.tokens += len(x)
            self.inputs += x.sum(0)
        else:  # products of x and y that are scaled by the square root have the weight
            root = weights.flatten().to(x).sqrt()  # (tokens,)
            x, y = x * root[:, None], None if y is None else y * root[:, None]
            self.tokens += float(root.square().sum())
            self.inputs += root @ x
        width = x.shape[1]
        step = max(_LEAST_ROWS, -(-width // _BLOCKS))
        for start in range(0, width, step):
            stop = min(start + step, width)
            self.lower[start:stop, :stop] += x[:, start:stop].T @ x[:, :stop]
        if y is not None:  # (tokens, outputs)
            self.cross += y.T @ x
            self.targets += y.sum(0) if weights is None else root @ y
            self.energy += y.square().sum(1).sum(dtype=torch.float64)

    def set_outputs(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Sets the targets to W x + b for W (outputs, inputs), so that no token is needed for them.

        Sum of y x^T = W sum x x^T + b (sum x)^T, and |y|^2 is the trace of y y^T likewise.
        """
        weight = weight.to(self.lower)
        shift = torch.zeros_like(self.targets) if bias is None else bias.to(self.lower)
        product = weight @ self.gram  # W sum x x^T, (outputs, inputs)
        linear = weight @ self.inputs  # W sum x, (outputs,)
        self.cross = product + shift.outer(self.inputs)
        self.targets = linear + self.tokens * shift
        self.energy = (product * weight).sum() + shift @ (linear + self.targets)

    def error(self, weight: Tensor, bias: Tensor | None = None) -> float:
        """Computes sum |V x + b - y|^2 of these tokens for V (outputs, inputs): a quadratic form.

        It is tr((V G - 2 C) V^T) + E + b^T (2 V s - 2 t + n b), with G = sum x x^T, C = sum y x^T,
        s = sum x, t = sum y and E = sum |y|^2 over n tokens.
        """
        weight = weight.to(self.lower)
        error = ((weight @ self.gram - 2 * self.cross) * weight).sum() + self.energy
        if bias is not None:
            shift = bias.to(self.lower)
            error += shift @ (2 * (weight @ self.inputs - self.targets) + self.tokens * shift)
        return float(error)


class LeastSquares:
    """The best weights of a projection for the inputs that it keeps.

    The error of weights V (outputs, inputs) is sum |V x - y|^2 + r |V - W|^2 with the dense weights
    W. The damping r, relative to the mean square of an input, keeps the dense weights in directions
    that no token has; if all inputs are zero, r is 1. Neighbouring inputs form units, which are
    kept or pruned together.

    Args:
        moments: of the inputs and targets.
        weight: W, (outputs, inputs).
        width: inputs of one unit.
        damping: relative damping, at least 0. With 0, singular second moments are an error.
        ridge: r itself, in place of the relative damping.
        biased: whether a bias is fitted too; x and y are then differences from their means.
        name: of the projection, for errors.
        order: of the inputs, (inputs,), that makes those of a unit neighbours; None if they are.

    Attributes:
        weight: W in float64. Its inputs and those of ``gram``, ``cross`` and ``squares`` are in
            the given order, and so are all weights that methods take and return.
        gram: sum x x^T + r, (inputs, inputs) float64.
        cross: sum y x^T + r W, (outputs, inputs) float64.
        energy: the error of no weights at all, sum |y|^2 + r |W|^2.
        ridge: r.
        squares: sum x^2 of each input, (inputs,) float64; of x itself also with a bias.
        width: inputs of one unit.
        units: number of units.

    Raises:
        PruningError: the activations are not finite.
    """

    def __init__(
        self,
        moments: SecondMoments,
        weight: Tensor,
        width: int = 1,
        damping: float = 0.0,
        ridge: float | None = None,
        biased: bool = False,
        name: str = "a projection",
        order: Tensor | None = None,
    ) -> None:
        if order is not None:
            moments, weight = moments.ordered(order), by_unit(weight, order)
        gram = moments.gram
        # A sum with an infinity or a NaN in it is one; float64 sums of float32 do not overflow.
        if not math.isfinite(float(gram.sum() + moments.cross.sum()) + (ridge or 0.0)):
            raise PruningError(
                f"the activations at {name} overflow or are not numbers; choose dtype float32 or "
                "bfloat16"
            )
        self.weight = weight.to(gram)
        self.squares = gram.diagonal().clone()
        self.gram, self.cross, energy = gram, moments.cross, moments.energy
        if biased:  # sum (x - m)(x - m)^T = sum x x^T - (sum x) m^T, and so on
            mean = moments.inputs / moments.tokens
            self.gram -= moments.inputs.outer(mean)
            self.cross = self.cross - moments.targets.outer(mean)
            energy = energy - moments.targets.square().sum() / moments.tokens
        # With the damping, V (sum x x^T + r I) = sum y x^T + r W.
        relative = damping * float(self.gram.diagonal().mean())
        self.ridge = (relative or float(damping > 0)) if ridge is None else ridge
        self.gram.diagonal().add_(self.ridge)
        self.cross = self.cross + self.ridge * self.weight
        self.energy = float(energy + self.ridge * self.weight.square().sum())
        self.width = width
        self.units = len(self.gram) // width
        self._moments = moments if biased else None
        self._order = order
        self._name = name

    def everything(self) -> Tensor:
        """Returns the choice that keeps all units, (units,) bool."""
        return torch.ones(self.units, dtype=torch.bool, device=self.gram.device)

    def inputs(self, kept: Tensor) -> Tensor:
        """Returns the indices of the inputs of kept units (units,) bool."""
        return kept.to(self.gram.device).repeat_interleave(self.width).nonzero().flatten()

    def refit(self, kept: Tensor) -> Tensor:
        """Computes the best weights that use kept units (units,) bool only, zero for all others.

        Raises:
            PruningError: the second moments are singular and there is no damping.
        """
        index = self.inputs(kept)
        if len(index) == len(self.gram):
            return torch.cholesky_solve(self.cross.T, self.factor(index)).T
        weight = torch.zeros_like(self.cross)
        weight[:, index] = torch.cholesky_solve(self.cross[:, index].T, self.factor(index)).T
        return weight

    def in_place(self, weight: Tensor) -> Tensor:
        """Puts the columns of weights (outputs, inputs) where the projection has them."""
        if self._order is None:
            return weight
        return torch.empty_like(weight).index_copy_(1, self._order.to(weight.device), weight)

    def bias(self, weight: Tensor) -> Tensor | None:
        """Computes the bias for weights V (outputs, inputs), mean of y - V x; None if unbiased."""
        moments = self._moments
        if moments is None:
            return None
        return (moments.targets - weight @ moments.inputs) / moments.tokens

    def error(self, kept: Tensor) -> float:
        """Computes the smallest error of weights that use kept units (units,) bool only."""
        # With G = L L^T and C the columns of sum y x^T + r W, it is energy - |L^-1 C^T|^2.
        index = self.inputs(kept)
        half = torch.linalg.solve_triangular(
            self.factor(index), self.cross[:, index].T, upper=False
        )
        return self.energy - float(half.square().sum())

    def inverse(self, kept: Tensor) -> Tensor:
        """Computes the inverse of the kept units' gram, (inputs, inputs), zero for the others."""
        index = self.inputs(kept)
        inverse = torch.zeros_like(self.gram)
        inverse[index[:, None], index] = torch.cholesky_inverse(self.factor(index))
        return inverse

    def factor(self, index: Tensor) -> Tensor:
        """Computes the lower Cholesky factor of the gram matrix of some inputs (i,): (i, i).

        Raises:
            PruningError: the matrix is singular.
        """
        gram = self.gram if len(index) == len(self.gram) else self.gram[index[:, None], index]
        factor, failed = torch.linalg.cholesky_ex(gram)
        pivots, scale = factor.diagonal().square(), gram.diagonal()
        precision = len(index) * torch.finfo(gram.dtype).eps  # relative error of a pivot
        if bool(failed) or bool((pivots <= precision * scale).any()):
            raise PruningError(
                f"the second moments of the {len(index)} inputs of {self._name} are singular; "
                "damp them (0.01 for example) or calibrate on more text"
            )
        return factor
