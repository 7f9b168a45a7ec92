"""All that limits masks at once: pools, and bounds that overlap them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pgprune.budget.bound import Bound
from pgprune.budget.multipliers import shifts
from pgprune.budget.pool import Pool
from pgprune.budget.rounding import best_chunks, best_within

_EXACT = 1e-12  # of a capacity, which sums of float64 may miss


@dataclass(frozen=True)
class Limits:
    """Limits on the costs of what is kept, one a row.

    Attributes:
        weight: of each unit in the squares that a projection minimises, (n,) float64.
        cost: of each unit, (m, n) int64.
        capacity: that the costs of a mask may add up to, (m,) int64.
        share: the capacity of the relaxed problem, (m,) float64.
    """

    weight: Tensor
    cost: Tensor
    capacity: Tensor
    share: Tensor

    @classmethod
    def of(cls, cost: Tensor, pools: Sequence[Pool], bounds: Sequence[Bound]) -> Self:
        """Makes one row of each pool and of each bound.

        Args:
            cost: of each unit in its pool, (n,) int64.
            pools: that the units are split into.
            bounds: over all units.
        """
        rows = [torch.zeros_like(cost).index_copy(0, pool.members, pool.cost) for pool in pools]
        limits = [bound.capacity for bound in bounds]
        return cls(
            cost.double(),
            torch.stack([*rows, *(bound.cost for bound in bounds)]),
            torch.tensor([*(pool.capacity for pool in pools), *limits]),
            torch.tensor([*(pool.share for pool in pools), *limits], dtype=torch.float64),
        )

    def project(self, z: Tensor, most: Tensor | None) -> Tensor:
        """Projects scores (n,) onto all limits, on the host; shifts stop at ``most``, (n,)."""
        limit = None if most is None else most.cpu()
        moved = shifts(z.cpu(), self.weight, self.cost.double(), self.share, limit)
        return (z.cpu() - moved).clamp(0, 1).to(z.device)

    def round(self, scores: Tensor, group: Tensor, chunk: Tensor, first: Tensor | None) -> Tensor:
        """Rounds scores (n,) to a mask within all limits, (n,) uint8.

        Args:
            scores: on the host.
            group: the group of each unit, (n,).
            chunk: how many units of its group are kept together, (n,).
            first: units that are kept before all others, (n,) bool; None for none.
        """
        mask = torch.zeros(len(scores), dtype=torch.uint8)
        if bool((chunk == 1).all()):
            kept = best_within(scores, self.weight, self.cost, self.capacity, first)
        else:
            kept = best_chunks(scores, self.cost, self.capacity, group, chunk, self.weight, first)
        mask[kept] = 1
        return mask


def allows(bounds: Sequence[Bound], kept: Tensor) -> bool:
    """Tells if bounds allow a mask or probabilities, (n,)."""
    if not bounds:  # a copy from a device would wait for it
        return True
    host = kept.to("cpu", torch.float64)
    return all(
        float(host @ bound.cost.double()) <= bound.capacity * (1 + _EXACT) for bound in bounds
    )
