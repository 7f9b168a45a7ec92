"""Holds the importance of units, and decides how a mask follows from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits


@dataclass(frozen=True)
class Importance:
    """The importance of all units, as a metric measured it.

    Attributes:
        scores: importance of each unit, (n,) float64, higher is more worth keeping.
        local: whether scores compare within a (layer, kind) group only, else within a kind.
        protected: the units of layers that are kept whole, (n,) bool; None where a metric
            protects none, also without the option to.
    """

    scores: Tensor
    local: bool = False
    protected: Tensor | None = None

    def mask(self, budget: Budget) -> Tensor:
        """Rounds the scores to the metric's one-shot mask, (n,) uint8.

        Local scores say nothing about shares of layers, so each layer keeps its share of each kind.
        Layers that protect some units cannot keep equal shares; there, local scores count by rank.
        """
        if self.protected is None:
            mask = (budget.local() if self.local else budget).round(self.scores)
            if budget.keeps_enough(mask):
                return mask
        scores = ranks(budget.units, self.scores) if self.local else self.scores
        if self.protected is None:
            return budget.round(scores)
        return budget.round(scores.masked_fill(self.protected, math.inf))

    def transformed(self, units: PruningUnits, transform: Callable[[Tensor], Tensor]) -> Tensor:
        """Applies a function to each set of scores that compare, (n,) float64 on the CPU."""
        scores = self.scores.to("cpu", torch.float64)
        groups = (units.group if self.local else units.kind).cpu()
        result = torch.empty_like(scores)
        for index in groups.unique():
            members = groups == index
            result[members] = transform(scores[members])
        return result

    def standardised(self, units: PruningUnits) -> Tensor:
        """Shifts and scales scores to mean 0 and deviation 1 where they compare, (n,) float64."""
        return self.transformed(units, _standardised)


def _standardised(scores: Tensor) -> Tensor:
    deviation = scores.std(correction=0)
    return (scores - scores.mean()) / deviation.where(deviation > 0, 1)


def places(units: PruningUnits, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Orders the units of each (layer, kind) group by score; ties go by index.

    Args:
        units: of the model.
        scores: (n,) on the CPU.

    Returns:
        The place of each unit in its group, 0 for the best, and the size of its group, (n,) each.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(units.group[order], stable=True)]  # group by group, best first
    sizes = torch.bincount(units.group)  # (groups,)
    starts = (sizes.cumsum(0) - sizes)[units.group[order]]
    place = torch.empty(units.n, dtype=torch.int64)
    place[order] = torch.arange(units.n) - starts
    return place, sizes[units.group]


def ranks(units: PruningUnits, scores: Tensor) -> Tensor:
    """Ranks each score in its (layer, kind) group as a share, (n,) -> (n,) in (0, 1].

    The best of a group has 1. Rounding ranks prunes every group alike, as methods do that rank
    within a layer only.
    """
    place, size = places(units, scores)
    return 1 - place / size.double()


def outer_units(budget: Budget, protect: bool = True) -> Tensor:
    """Finds the units of the first L/8 and the last L/16 of L layers, (n,) bool.

    These are 4 and 2 of 32 layers, which LLM-Pruner and Shortened LLaMA keep whole; other numbers
    of layers give the nearest whole numbers, halves up.

    Args:
        budget: must have room for them.
        protect: whether to protect any unit at all.

    Raises:
        PruningError: the budget is less than what is protected.
    """
    layers = budget.units.layers if protect else 0
    return protected_units(budget, (layers + 4) // 8, (layers + 8) // 16)


def protected_units(budget: Budget, first: int, last: int) -> Tensor:
    """Finds the units of the first and the last layers, (n,) bool.

    With a scope of ``local`` or ``uniform`` every layer keeps its share, so no layer can keep all
    of it, and nothing is protected.

    Args:
        budget: must have room for the protected units.
        first: number of layers from the first.
        last: number of layers from the last.

    Raises:
        PruningError: the budget is less than what is protected.
    """
    units = budget.units
    if budget.scope != "global":
        return torch.zeros(units.n, dtype=torch.bool)
    protected = (units.layer < first) | (units.layer >= units.layers - last)
    for pool in budget.pools:
        cost = int(pool.cost[protected[pool.members]].sum())
        if cost > pool.capacity:
            # Rounded down to four digits, so that the advised rate itself is accepted.
            most = math.floor(1e4 * (1 - cost / int(pool.cost.sum()))) / 1e4
            raise PruningError(
                f"prune rate {budget.prune_rate} is more than there is between the first {first} "
                f"and the last {last} of {units.layers} layers, which are kept whole; choose a "
                f"rate of at most {most:g}, or protect fewer layers"
            )
    if not budget.allows(protected):
        texts = " and ".join(bound.target.text for bound in budget.bounds)
        raise PruningError(
            f"the first {first} and the last {last} of {units.layers} layers, which are kept "
            f"whole, are more than {texts} leaves; ask for more, or protect fewer layers"
        )
    return protected
