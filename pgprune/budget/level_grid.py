"""The levels that a search starts from, and those around them."""

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.budget.pool import Pool
from pgprune.errors import PruningError

STEPS = 16  # a step is this part of a group
_LEAST_SHARE = 0.25  # of the channels; below it other units are pruned from the start as well


def start_shares(budget: Budget) -> Tensor:
    """Returns the share of each group that the start keeps, (groups,) float64.

    All layers keep the same share, because a metric compares units of a layer better than layers.
    Where a budget lets channels pay for heads, channels alone are pruned as long as a quarter of
    them is left: by their parameters, few kv groups are the dearer choice.

    Raises:
        PruningError: the budget has a scope that fixes what a layer keeps.
    """
    if budget.scope != "global":
        raise PruningError(
            f"levels are about how much each layer keeps, which scope {budget.scope} fixes; choose "
            "scope global"
        )
    shares = torch.ones(len(budget.units.groups), dtype=torch.float64)
    for pool in budget.pools:
        shares[groups_of(budget, pool)] = pool.share / float(pool.cost.sum())
        if "channels" not in budget.units.kinds or len(budget.pools) > 1:
            continue
        channels = budget.units.kind == budget.units.kinds.index("channels")  # (n,)
        cost = float(budget.cost[channels].sum())
        share = 1 - (float(pool.cost.sum()) - pool.share) / cost
        if share >= _LEAST_SHARE and budget.allows(torch.where(channels, share, 1.0)):
            shares.fill_(1)
            shares[budget.units.group[channels]] = share
    return shares


def start_counts(budget: Budget) -> list[int]:
    """Returns the number of units of each group that the start keeps; see ``start_shares``."""
    counts = []
    for group, share in zip(budget.units.groups, start_shares(budget).tolist(), strict=True):
        count, chunk = group.stop - group.start, budget.chunk(group.kind)
        counts.append(int(share * count + 1e-9) // chunk * chunk if share < 1 else count)
    return counts


def grid(budget: Budget, shared: bool = False) -> tuple[list[Tensor], Tensor]:
    """Returns the numbers of units that levels keep, and which levels a search starts from.

    The start is a level, and the others are whole steps from it, so that an exchange of steps
    between layers stays on the budget.

    Args:
        budget: of the search.
        shared: whether searches at other prune rates take the same levels, which are then whole
            steps from 0; the start is the level at it or below.

    Returns:
        Units kept at each level of each group, (levels,) int64, falling from all of them to 0; and
        the level of each group at the start, (groups,) int64.
    """
    kept, start = [], []
    for group, first in zip(budget.units.groups, start_counts(budget), strict=True):
        count, chunk = group.stop - group.start, budget.chunk(group.kind)
        step = max(1, round(count / STEPS / chunk)) * chunk
        inner = {c for c in range(0 if shared else first % step, count, step)}
        levels = torch.tensor(sorted(inner | {0, count}, reverse=True))
        kept.append(levels)
        start.append(int((levels > first).sum()))
    return kept, torch.tensor(start)


def groups_of(budget: Budget, pool: Pool) -> Tensor:
    """Returns the indices of the groups whose units are in a pool, (g,) int64."""
    return budget.units.group[pool.members].unique()
