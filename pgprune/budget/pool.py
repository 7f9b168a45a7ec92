"""Pools: the parts of a budget, whose units share one capacity each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from pgprune.budget.rounding import largest_remainder
from pgprune.masking.units import PruningUnits


@dataclass(frozen=True)
class Pool:
    """Units that share one capacity.

    Attributes:
        name: the kind of its units, or "the model" if they are of all kinds.
        members: flat indices of the units, (p,) int64, ascending.
        cost: cost of each member, (p,) int64.
        share: the capacity of the relaxed problem, kept share times total cost.
        capacity: the whole number that the costs of a mask may add up to.
    """

    name: str
    members: Tensor
    cost: Tensor
    share: float
    capacity: int


def pools_of(
    units: PruningUnits,
    cost: Tensor,
    keep: Mapping[str, Fraction],
    kind: str,
    scope: str,
    chunk: Tensor | None,
) -> list[Pool]:
    """Makes the pools of a budget.

    Args:
        units: the units to choose from.
        cost: of each unit, (n,) int64.
        keep: the share of a pool's cost that stays, by kind.
        kind: ``per-kind`` for a pool for each kind.
        scope: ``global``, else a pool for each layer; with ``uniform`` of the same capacity.
        chunk: how many units are kept together, (n,), where a capacity is a number of units; None
            where it is a cost.
    """
    by_kind = units.kind if kind == "per-kind" else torch.zeros_like(units.kind)
    layer = units.layer if scope != "global" else torch.zeros_like(units.layer)
    pools: list[Pool] = []
    for k in by_kind.unique():
        name = units.kinds[k] if kind == "per-kind" else "the model"
        members = [
            torch.nonzero((by_kind == k) & (layer == level)).flatten()
            for level in layer[by_kind == k].unique()
        ]
        shares = [keep[units.kinds[k]] * int(cost[index].sum()) for index in members]
        if chunk is None:
            capacities = [math.floor(share) for share in shares]
        else:
            together = int(chunk[torch.cat(members)].min())  # 1 beside heads
            if scope == "uniform":
                capacities = [math.floor(min(shares) / together) * together] * len(shares)
            else:
                capacities = largest_remainder(shares, [len(i) for i in members], together)
        for index, share, capacity in zip(members, shares, capacities, strict=True):
            pools.append(Pool(name, index, cost[index], float(share), capacity))
    return pools
