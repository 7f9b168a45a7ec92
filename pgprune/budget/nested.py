"""A budget within a mask: only what a larger model keeps may be kept."""

import math

from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.utils.transfer import send


class NestedBudget(Budget):
    """The masks of a budget that keep a part of what another mask keeps.

    ``with_rate`` and ``local`` return budgets without that limit.

    Args:
        budget: as it is without the limit.
        allowed: the mask of the larger model, (n,) uint8.

    Attributes:
        allowed: as given, on the CPU.
        most: units of each group that the larger model keeps, (groups,) int64.
    """

    def __init__(self, budget: Budget, allowed: Tensor) -> None:
        vars(self).update(vars(budget))
        self.allowed = allowed.cpu()
        self.most = self.units.kept_counts(self.allowed[None])[0].long()

    def project(self, probabilities: Tensor) -> Tensor:
        """Projects as ``Budget.project``; what the larger model prunes has probability 0."""
        # clip(z - v, 0, 1) with v >= 0 leaves a 0 where it is.
        return super().project(probabilities * send(self.allowed, probabilities.device))

    def round(self, scores: Tensor) -> Tensor:
        """Rounds as ``Budget.round``, and keeps nothing that the larger model prunes.

        A pruned unit that would still fit is one of those.
        """
        # Where all that is allowed is kept, the capacity left would go to what is not.
        barred = scores.detach().cpu().masked_fill(self.allowed == 0, -math.inf)
        return super().round(barred) & self.allowed
