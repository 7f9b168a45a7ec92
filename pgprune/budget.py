"""The budget: which masks are allowed, the projection onto them, and the rounding to one of them.

Scores live in pools that share one capacity. ``per-kind`` has a pool for each kind of unit,
``units`` (Eq. 1 of arXiv 2406.10576) and ``parameters`` have one; the scope ``local`` splits each
pool by layer (Sect. 5.2). A unit costs one, or its parameters where the budget counts parameters.
"""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.units import PruningUnits

BUDGETS = ("per-kind", "units", "parameters")
SCOPES = ("global", "local")
_BISECTIONS = 32  # leaves the shift within 2^-32 of exact; one linear step makes it exact


@dataclass(frozen=True)
class Pool:
    """Units that share one capacity.

    Attributes:
        name: the kind of its units, or "the model" if they are of all kinds.
        members: flat indices of the units, (p,) int64, ascending.
        cost: cost of each member, (p,) int64.
        share: the capacity of the relaxed problem, kept share times total cost.
        capacity: the capacity of a mask, a whole number.
    """

    name: str
    members: Tensor
    cost: Tensor
    share: float
    capacity: int


class Budget:
    """The feasible set of masks and of keep probabilities.

    Args:
        units: the units to choose from.
        prune_rate: share to remove, inside (0, 1).
        kind: ``per-kind``, ``units`` or ``parameters``.
        scope: ``global`` or ``local`` (each layer keeps its share).

    Raises:
        PruningError: a rate outside (0, 1), an unknown kind or scope, a scope that leaves nothing
            to choose, or a rate so high that no unit of some kind would be left.
    """

    def __init__(
        self,
        units: PruningUnits,
        prune_rate: float,
        kind: str = "per-kind",
        scope: str = "global",
    ) -> None:
        _check(prune_rate, kind, scope)
        self.units = units
        self.prune_rate = prune_rate
        self.kind = kind
        self.scope = scope
        # As a fraction, so that 0.3 of 20 heads is 6, for 0.1 + 0.2 as for 0.3.
        self._keep = 1 - Fraction(prune_rate).limit_denominator(10**9)
        self.target_share = float(self._keep)
        self.cost = units.cost if kind == "parameters" else torch.ones_like(units.cost)  # (n,)
        self.pools = self._pools()
        self._on_device: dict[torch.device, list[tuple[Tensor, Tensor, float]]] = {}
        self._check_pools()

    def with_rate(self, prune_rate: float) -> "Budget":
        """The same budget at another prune rate."""
        return Budget(self.units, prune_rate, self.kind, self.scope)

    def local(self) -> "Budget":
        """Every kind keeps its share in every layer: how metrics prune that compare no further."""
        return Budget(self.units, self.prune_rate, "per-kind", "local")

    def project(self, probabilities: Tensor) -> Tensor:
        """Projects scores onto the relaxed budget.

        Minimises sum_i c_i (s_i - z_i)^2 subject to sum_i c_i s_i <= B and 0 <= s <= 1 in each
        pool, whose solution is clip(z - v, 0, 1) with one shift v >= 0 (Theorem 1 of the paper,
        after Wang & Carreira-Perpinan 2013). Bisection brackets the shift, a linear step ends it.

        Args:
            probabilities: scores z, (n,) float64 on any device.

        Returns:
            The projection, (n,), on the same device.
        """
        projected = torch.empty_like(probabilities)
        for members, cost, share in self._pools_on(probabilities.device):
            projected[members] = _project_pool(probabilities[members], cost, share)
        return projected

    def round(self, scores: Tensor) -> Tensor:
        """The mask of the best scores: never over budget, and no pruned unit would still fit.

        Units are kept in descending order of score while they fit; ties go by index.

        Args:
            scores: (n,), higher is more worth keeping; NaN is refused.

        Returns:
            The mask, (n,) uint8 on the CPU.
        """
        scores = scores.detach().to("cpu", torch.float64)
        if scores.shape != (self.units.n,) or bool(scores.isnan().any()):
            raise PruningError(
                f"scores to round must be {self.units.n} numbers, got shape {tuple(scores.shape)}"
                f" with {int(scores.isnan().sum())} not-a-number entries"
            )
        mask = torch.zeros(self.units.n, dtype=torch.uint8)
        for pool in self.pools:
            order = pool.members[torch.argsort(scores[pool.members], descending=True, stable=True)]
            mask[order[_fill(self.cost[order], pool.capacity)]] = 1
        return mask

    def kept_share(self, masks: Tensor) -> Tensor:
        """The share that the budget counts: masks (K, n) -> (K,) float64.

        With ``per-kind`` it is the largest kept share of any kind, else the cost-weighted share
        of all units.
        """
        masks = masks.to(torch.float64)
        cost = self.cost.to(masks)
        if self.kind != "per-kind":
            return masks @ cost / cost.sum()
        kinds = torch.nn.functional.one_hot(self.units.kind).to(masks)  # (n, kinds)
        return (masks @ kinds / kinds.sum(0)).amax(dim=1)

    def excess(self, masks: Tensor) -> Tensor:
        """How far the kept share is over the target: masks (K, n) -> (K,) float64, at least 0."""
        return (self.kept_share(masks) - self.target_share).clamp(min=0)

    def _pools(self) -> list[Pool]:
        kind = self.units.kind if self.kind == "per-kind" else torch.zeros_like(self.units.kind)
        layer = self.units.layer if self.scope == "local" else torch.zeros_like(self.units.layer)
        pools: list[Pool] = []
        for k in kind.unique():
            name = self.units.kinds[k] if self.kind == "per-kind" else "the model"
            members = [
                torch.nonzero((kind == k) & (layer == level)).flatten()
                for level in layer[kind == k].unique()
            ]
            shares = [self._keep * int(self.cost[index].sum()) for index in members]
            capacities = _largest_remainder(shares, whole=self.kind != "parameters")
            for index, share, capacity in zip(members, shares, capacities, strict=True):
                pools.append(Pool(name, index, self.cost[index], float(share), capacity))
        return pools

    def _pools_on(self, device: torch.device) -> list[tuple[Tensor, Tensor, float]]:
        """Members, float64 costs and share of each pool, copied to a device once."""
        if device not in self._on_device:
            self._on_device[device] = [
                (pool.members.to(device), pool.cost.to(device, torch.float64), pool.share)
                for pool in self.pools
            ]
        return self._on_device[device]

    def _check_pools(self) -> None:
        """Refuses a budget without a choice, and one that leaves nothing."""
        if self.scope == "local" and all(len(pool.members) == 1 for pool in self.pools):
            raise PruningError(
                "scope local leaves nothing to choose, because each layer has one unit of a kind; "
                "choose scope global"
            )
        kept = {pool.name for pool in self.pools if pool.capacity >= int(pool.cost.min())}
        for pool in self.pools:
            if pool.name not in kept:
                raise PruningError(
                    f"prune rate {self.prune_rate} leaves nothing of {pool.name}; choose a smaller "
                    "rate or another granularity"
                )


def _check(prune_rate: float, kind: str, scope: str) -> None:
    if not isinstance(prune_rate, int | float) or not 0 < prune_rate < 1:
        raise PruningError(
            f"prune rate {prune_rate!r} is not a number inside (0, 1); for example 0.3 removes 30 %"
        )
    if kind not in BUDGETS:
        raise PruningError(f"budget {kind!r} is unknown; choose one of {', '.join(BUDGETS)}")
    if scope not in SCOPES:
        raise PruningError(f"scope {scope!r} is unknown; choose one of {', '.join(SCOPES)}")


def _largest_remainder(shares: list[Fraction], whole: bool) -> list[int]:
    """Whole capacities: floors, and what they leave of the sum by largest remainder if units."""
    floors = [share.numerator // share.denominator for share in shares]
    if not whole:
        return floors
    left = int(sum(shares)) - sum(floors)
    by_remainder = sorted(range(len(shares)), key=lambda i: floors[i] - shares[i])
    for i in by_remainder[:left]:
        floors[i] += 1
    return floors


def _fill(cost: Tensor, capacity: int) -> Tensor:
    """Which of the ordered units are kept, (p,) bool, when each is kept if it still fits."""
    kept = torch.zeros(len(cost), dtype=torch.bool)
    start = 0
    while start < len(cost):
        fits = torch.cumsum(cost[start:], 0) <= capacity
        run = int(fits.sum())  # costs are positive, so what fits is a prefix
        kept[start : start + run] = True
        capacity -= int(cost[start : start + run].sum())
        rest = torch.nonzero(cost[start + run :] <= capacity).flatten()
        if not len(rest):
            break
        start += run + int(rest[0])
    return kept


def _project_pool(z: Tensor, cost: Tensor, share: float) -> Tensor:
    """clip(z - v, 0, 1) with the smallest v >= 0 such that the cost stays within ``share``."""
    low, high = torch.zeros_like(z[0]), z.max().clamp(min=0)
    for _ in range(_BISECTIONS):  # no host synchronisation inside
        middle = (low + high) / 2
        over = cost @ (z - middle).clamp(0, 1) > share
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    # Between the breakpoints z - 1 and z the cost is linear in v: solve for v on the active set.
    gap = z - high
    active = cost * ((gap > 0) & (gap < 1))
    shift = (active @ z + cost @ (gap >= 1).to(z) - share) / active.sum()
    shift = torch.where(shift.isfinite(), shift, high).clamp(low, high)
    return (z - shift).clamp(0, 1)
