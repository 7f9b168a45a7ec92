"""Chooses how strongly refitted weights are drawn to the dense ones, by held-out text.

The damping r of |V x - y|^2 + r |V - W|^2 shrinks the change of the weights: with little text, or
where the change serves this text only, a larger one fits other text better. The error on held-out
text is a quadratic form of its second moments, so to try a damping costs one solution and no pass.
"""

import math
from typing import NamedTuple

from torch import Tensor

from pgprune.repair.projection import Projection

DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
"""Those to choose from; the dense weights themselves are the limit of large ones."""


class Damped(NamedTuple):
    """The weights of a projection's kept inputs under the best damping.

    Attributes:
        damping: relative to the mean square of an input; infinite for the dense weights.
        weight: (outputs, kept inputs).
        bias: (outputs,), None where the projection has none.
        error: of these weights on the held-out text.
    """

    damping: float
    weight: Tensor
    bias: Tensor | None
    error: float


def best_damped(projection: Projection) -> Damped:
    """Finds the weights with the smallest error on held-out text.

    Args:
        projection: with ``wanted`` and ``held_out``.

    Raises:
        PruningError: the activations are not finite.
    """
    assert projection.held_out is not None
    held, dense, _ = projection.held_out.kept_moments()
    own = projection.linear.bias
    best = Damped(math.inf, dense, own, held.error(dense, own))
    for damping, problem in zip(DAMPINGS, projection.dampings_of_kept(DAMPINGS), strict=True):
        weight = problem.refit(problem.everything())
        bias = problem.bias(weight)
        found = Damped(damping, weight, bias, held.error(weight, bias))
        if found.error < best.error:
            best = found
    return best
