"""The budget: which masks are allowed, the projection onto them, and the rounding to one of them.

Scores live in pools that share one capacity. ``per-kind`` has a pool for each kind of unit,
``units`` (Eq. 1 of arXiv 2406.10576) and ``parameters`` have one; the scope ``local`` splits each
pool by layer (Sect. 5.2), and ``uniform`` gives all layers the same capacity, rounded down. A unit
costs one, or its parameters where the budget counts parameters, or those of them that a token uses.
Every layer keeps as many experts as a token uses. Of experts and channels, whose numbers multiply,
``product`` finds the shares.

Targets are bounds over all units, which hold beside the pools. The rate is then the smallest at
which equal shares of everything meet them. Pools have its shares, and where kinds share a pool,
units cost what they cost by the bound that asks for that rate.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from pgprune.budget.bound import Bound
from pgprune.budget.bounds import check_bounds, tightest
from pgprune.budget.least import best_of_groups, check_least, most_shifts
from pgprune.budget.limits import Limits, allows
from pgprune.budget.pool import Pool, pools_of
from pgprune.budget.product import check_product, kept_shares
from pgprune.budget.projection import no_numbers, ordinary, project_pool
from pgprune.budget.rounding import (
    best_chunks,
    best_units,
    check_round_to,
    check_uniform,
)
from pgprune.errors import PruningError, check_choice
from pgprune.masking.units import PruningUnits
from pgprune.utils.transfer import send

BUDGETS = ("per-kind", "units", "parameters", "active-parameters")
SCOPES = ("global", "local", "uniform")


class Budget:
    """The feasible set of masks and of keep probabilities.

    Args:
        units: the units to choose from.
        prune_rate: share to remove, inside (0, 1).
        kind: ``per-kind``, ``units``, ``parameters`` or ``active-parameters``, those of a token.
        scope: ``global``, ``local`` (each layer keeps its share) or ``uniform`` (all layers keep
            equally many heads and equally many channels).
        round_to: the number of channels that a layer keeps is a multiple of it.
        bounds: limits that hold as well; see ``within``.

    Raises:
        PruningError: a rate outside (0, 1), an unknown kind or scope, a scope that leaves nothing
            to choose, a scope or ``round_to`` that does not fit the units, or a rate so high that
            no unit of a kind is left (with ``uniform``, in a layer) or fewer experts than a token
            uses.
    """

    def __init__(
        self,
        units: PruningUnits,
        prune_rate: float | Fraction,
        kind: str = "per-kind",
        scope: str = "global",
        round_to: int = 1,
        bounds: Sequence[Bound] = (),
    ) -> None:
        _check(prune_rate, kind, scope)
        check_product(units.kinds, kind, scope, bool(bounds))
        check_round_to(units, round_to)
        if scope == "uniform":
            check_uniform(units, kind)
        self.units = units
        self.kind = kind
        self.scope = scope
        self.round_to = round_to
        self.bounds = tuple(bounds)
        # A fraction, so that both 0.3 and 0.1 + 0.2 of 20 heads are 6.
        rate = Fraction(prune_rate)
        if not isinstance(prune_rate, Fraction):
            rate = rate.limit_denominator(10**9)
        self.prune_rate = float(prune_rate)
        self._keep = Fraction(1 - rate)
        self.target_share = float(self._keep)
        shares = dict.fromkeys(units.kinds, self._keep)
        if units.multiply:
            shares = kept_shares(units, self._keep, round_to)
        own = [float(shares[kind]) for kind in units.kinds]
        self._shift = self.target_share - torch.tensor(own, dtype=torch.float64)  # (kinds,)
        self.cost = self._cost()  # (n,)
        self._chunk = torch.ones_like(units.cost)  # units that are kept together, (n,)
        if round_to > 1:
            channels = units.kind == units.kinds.index("channels")
            self._chunk[channels] = round_to // units.channel_block
        parts = kind == "per-kind" or (kind == "units" and not self.bounds)
        self.pools = pools_of(units, self.cost, shares, kind, scope, self._chunk if parts else None)
        self._on_device: dict[torch.device, list[tuple[Tensor, Tensor, float]]] = {}
        self._check_pools()

    @classmethod
    def within(
        cls,
        units: PruningUnits,
        bounds: Sequence[Bound],
        kind: str = "per-kind",
        scope: str = "global",
        round_to: int = 1,
    ) -> Self:
        """Returns the budget of the masks that all bounds allow.

        Raises:
            PruningError: no mask is within a bound, or as the class.
        """
        check_bounds(units, bounds)
        return cls(units, tightest(bounds).rate, kind, scope, round_to, bounds)

    def with_rate(self, prune_rate: float) -> "Budget":
        """Returns the same budget at another prune rate; bounds move as far as the rate does."""
        if not self.bounds:
            return Budget(self.units, prune_rate, self.kind, self.scope, self.round_to)
        if prune_rate == self.prune_rate:
            return self
        share: Fraction = Fraction(prune_rate).limit_denominator(10**9) / (1 - self._keep)
        bounds = [bound.relaxed(share) for bound in self.bounds]
        return Budget.within(self.units, bounds, self.kind, self.scope, self.round_to)

    def chunk(self, kind: str) -> int:
        """Returns how many units of a kind are kept together in a layer."""
        return int(self._chunk[self.units.kind == self.units.kinds.index(kind)][0])

    def local(self) -> "Budget":
        """Returns the budget by which every kind keeps its share in every layer.

        Metrics whose scores do not compare across layers round with it. What layers were asked to
        keep at least does not hold in it, as whole layers cannot keep their share.
        """
        scope = "uniform" if self.scope == "uniform" else "local"
        units = self.units if self.scope == "uniform" else self.units.keeping(self.units.needed)
        rate = 1 - self._keep if self.bounds else self.prune_rate
        return Budget(units, rate, "per-kind", scope, self.round_to, self.bounds)

    def project(self, probabilities: Tensor) -> Tensor:
        """Projects probabilities z, (n,) float64, onto the relaxed budget: (n,) on the same device.

        Minimises sum_i c_i (s_i - z_i)^2 subject to sum_i c_i s_i <= B and 0 <= s <= 1 in each
        pool, whose solution is clip(z - v, 0, 1) with one shift v >= 0 (Theorem 1 of the paper,
        after Wang & Carreira-Perpinan 2013). Bisection brackets the shift and a linear step makes
        it exact. Where a group must keep some units, its s add up to their number at least, so its
        shift stops at the one for that. Infinite scores are larger or smaller than all others. On a
        GPU, where a look at the values would wait for it, scores must be finite.

        Raises:
            PruningError: a score is not a number.
        """
        probabilities = ordinary(probabilities)
        projected = torch.empty_like(probabilities)
        most = most_shifts(self.units, probabilities)
        for members, cost, share in self._pools_on(probabilities.device):
            limit = None if most is None else most[members]
            projected[members] = project_pool(probabilities[members], cost, share, limit)
        if self.allows(projected):
            return projected
        return self.limits.project(probabilities, most)

    def round(self, scores: Tensor) -> Tensor:
        """Rounds scores to the best mask: never over budget, and no pruned unit would still fit.

        Units are kept in descending order of score while they fit; ties go by index. With
        ``round_to`` the channels of a layer are kept in chunks, see ``budget.rounding``.

        Args:
            scores: (n,), higher is more worth keeping; NaN is an error.

        Returns:
            The mask, (n,) uint8 on the CPU.
        """
        scores = scores.detach().to("cpu", torch.float64)
        if scores.shape != (self.units.n,) or bool(scores.isnan().any()):
            raise PruningError(no_numbers(scores, self.units.n))
        mask = torch.zeros(self.units.n, dtype=torch.uint8)
        first = best_of_groups(self.units, scores)
        for pool in self.pools:
            members = pool.members
            needed = None if first is None else first[members]
            if self.round_to == 1:
                kept = best_units(scores[members], pool.cost, pool.capacity, needed)
            else:
                group, chunk = self.units.group[members], self._chunk[members]
                kept = best_chunks(
                    *(scores[members], pool.cost, pool.capacity, group, chunk), first=needed
                )
            mask[members[kept]] = 1  # indices within the pool
        if self.allows(mask):
            return mask
        return self.limits.round(scores, self.units.group, self._chunk, first)

    def allows(self, kept: Tensor) -> bool:
        """Tells if all bounds allow a mask or probabilities, (n,)."""
        return allows(self.bounds, kept)

    def keeps_enough(self, mask: Tensor) -> bool:
        """Tells if a mask (n,) keeps what every mask is to keep of each group."""
        return bool((self.units.kept_counts(mask[None].cpu())[0] >= self.units.least).all())

    def kept_share(self, masks: Tensor) -> Tensor:
        """Computes the kept share that the budget limits: masks (K, n) -> (K,) float64.

        With ``per-kind`` it is the largest kept share of any kind, moved to where the target is if
        kinds multiply, else the cost-weighted share of all units. If a bound is exceeded by more,
        it is the target share and that.
        """
        if self.kind != "per-kind":
            cost = self.cost.to(masks.device, torch.float64)  # (n,)
            shares = masks.to(torch.float64) @ cost / cost.sum()
        else:
            shift = send(self._shift, masks.device)
            shares = (self.units.kind_shares(masks) + shift).amax(dim=1)
        for bound in self.bounds:
            cost = bound.cost.to(masks.device, torch.float64)
            over = (masks.to(torch.float64) @ cost - bound.capacity) / bound.total
            shares = torch.maximum(shares, self.target_share + over)
        return shares

    def excess(self, masks: Tensor) -> Tensor:
        """Computes the kept share above the target, at least 0: masks (K, n) -> (K,) float64."""
        return (self.kept_share(masks) - self.target_share).clamp(min=0)

    def _cost(self) -> Tensor:
        """Returns what each unit costs in its pool, (n,) int64."""
        if self.bounds and self.kind != "per-kind":
            return tightest(self.bounds).cost.clamp(min=1)
        costs = {"parameters": self.units.cost, "active-parameters": self.units.active_cost}
        return costs.get(self.kind, torch.ones_like(self.units.cost))

    @cached_property
    def limits(self) -> Limits:
        """All that limits masks: pools and bounds."""
        return Limits.of(self.cost, self.pools, self.bounds)

    def _pools_on(self, device: torch.device) -> list[tuple[Tensor, Tensor, float]]:
        """Returns members, float64 costs and share of each pool; copies them to a device once."""
        if device not in self._on_device:
            self._on_device[device] = [
                (send(pool.members, device), send(pool.cost.double(), device), pool.share)
                for pool in self.pools
            ]
        return self._on_device[device]

    def _check_pools(self) -> None:
        """Refuses a budget without a choice, and one that leaves nothing."""
        if not self.pools:
            raise PruningError("a budget needs units to choose from, and there are none")
        if self.scope == "local" and all(len(pool.members) == 1 for pool in self.pools):
            raise PruningError(
                "scope local leaves nothing to choose, because each layer has one unit of a kind; "
                "choose scope global"
            )
        check_least(self.units, self.pools, self.cost, self.prune_rate)
        kept = {pool.name for pool in self.pools if pool.capacity >= self._least(pool)}
        for pool in self.pools:
            if pool.name not in kept:
                raise PruningError(self._nothing_left(pool))

    def _least(self, pool: Pool) -> int:
        """Returns the smallest cost of a unit, or of a chunk of units, of a pool."""
        return int((pool.cost * self._chunk[pool.members]).min())

    def _nothing_left(self, pool: Pool) -> str:
        if self.bounds:
            return (
                f"target {tightest(self.bounds).target.text} leaves nothing of {pool.name}; ask "
                "for more, or choose another granularity"
            )
        where, rate = "", "a smaller rate"
        if self.scope == "uniform":
            where = f" in any layer of {len(pool.members)} under scope uniform"
            most = math.floor(1e4 * (1 - self._least(pool) / len(pool.members))) / 1e4
            rate = f"a rate of at most {most:g}" if most > 0 else "another scope"
        if self.round_to > 1:
            rate += f", a round_to below {self.round_to}"
        return (
            f"prune rate {self.prune_rate} leaves nothing of {pool.name}{where}; choose {rate} or "
            "another granularity"
        )


def _check(prune_rate: float | Fraction, kind: str, scope: str) -> None:
    if not isinstance(prune_rate, int | float | Fraction) or not 0 < prune_rate < 1:
        raise PruningError(
            f"prune rate {prune_rate!r} is not a number inside (0, 1); for example 0.3 removes 30 %"
        )
    check_choice("budget", kind, BUDGETS)
    check_choice("scope", scope, SCOPES)
