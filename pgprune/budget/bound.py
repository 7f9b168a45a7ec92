"""A bound: a limit on what the kept units cost together."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from pgprune.budget.targets import Target


@dataclass(frozen=True)
class Bound:
    """A limit on what kept units cost together.

    Attributes:
        target: what it stands for.
        cost: of each unit, (n,) int64, at least 0.
        fixed: what no mask removes, in the same unit.
        limit: of both together.
        measure: computes what the model of a mask (n,) and a number of parameters that its repair
            adds come to, at most its cost and the fixed part.
        scale: of one unit of the target's value, in those of the cost.
    """

    target: Target
    cost: Tensor
    fixed: int
    limit: int
    measure: Callable[[Tensor, int], int]
    scale: float = 1

    @property
    def total(self) -> int:
        """The cost of all units together."""
        return int(self.cost.sum())

    @property
    def capacity(self) -> int:
        """What the kept units may cost together."""
        return self.limit - self.fixed

    @property
    def rate(self) -> Fraction:
        """The smallest rate at which equal shares of everything meet the limit."""
        return 1 - Fraction(self.capacity, max(1, self.total))

    def relaxed(self, share: Fraction) -> "Bound":
        """Returns the bound on the way to the limit: 0 allows the dense model, 1 is the bound."""
        limit = self.limit + math.ceil((self.total - self.capacity) * (1 - share))
        return Bound(self.target, self.cost, self.fixed, limit, self.measure, self.scale)

    def value(self, mask: Tensor, added: int = 0) -> float:
        """Computes what the model of a mask comes to, in the unit of the target.

        Args:
            mask: (n,) of zeros and ones.
            added: parameters of biases that a repair adds.
        """
        return self.measure(mask.cpu(), added) / self.scale

    def said(self, cost: float) -> str:
        """Says a cost in the unit of the target."""
        return self.target.said(cost / self.scale)
