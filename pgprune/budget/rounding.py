"""Rounds scores to a mask: whole capacities, and the units that fill them best.

With ``round_to`` N each layer keeps a multiple of N channels. The best N channels of a layer form a
chunk, the next best N another, and so on. The worth of a chunk is the mean score of its units, so
that it compares with single kv groups. Chunks are kept in descending order of worth while they fit.
In a pool of channels alone, no mask of multiples within the budget has a higher sum of scores,
because the chunks of a layer come in the order of their worth.
"""

import math
from fractions import Fraction

import torch
from torch import Tensor

from pgprune.budget.multipliers import shifts
from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits

_SHARPNESS = (1, 16, 256)  # of scores in [0, 1]; at the last, few units are between kept and pruned
_LARGEST = 1e300  # clamps infinite scores, so that inf - inf does not make a sum NaN


def check_round_to(units: PruningUnits, round_to: int) -> None:
    """Checks that layers can keep multiples of N channels.

    Raises:
        PruningError: N is not a whole number above 0, not a multiple of the channel block, or
            larger than a layer; or the units are not channels.
    """
    if type(round_to) is not int or round_to < 1:
        raise PruningError(f"round_to {round_to!r} is not a whole number of channels above 0")
    if round_to == 1:
        return
    if "channels" not in units.kinds:
        raise PruningError(
            f"round_to {round_to} is about numbers of channels, which granularity "
            f"{units.granularity} does not prune; leave it out or choose granularity heads+channels"
        )
    if round_to % units.channel_block:
        raise PruningError(
            f"round_to {round_to} is not a multiple of channel_block {units.channel_block}; choose "
            "one that is"
        )
    for layer, shape in enumerate(units.shapes):
        if 0 < shape.channels < round_to:
            raise PruningError(
                f"round_to {round_to} is more than the {shape.channels} channels of layer {layer}, "
                "which could only lose them all; choose a smaller one"
            )


def check_whole_heads(units: PruningUnits) -> None:
    """Checks that a stock architecture can hold the heads that masks leave.

    Raises:
        PruningError: the units are value dimensions.
    """
    if "values" in units.kinds:
        raise PruningError(
            f"no stock architecture has fewer value dimensions than a head is wide, which "
            f"granularity {units.granularity} gives; choose granularity heads+channels, or export "
            "with --portable, which fills them up with zeros"
        )


def check_uniform(units: PruningUnits, budget: str) -> None:
    """Checks that all layers can keep equally many units of each kind.

    Raises:
        PruningError: the units are value dimensions, whole blocks or layers, or the budget lets
            kinds trade.
    """
    check_whole_heads(units)
    if not {"heads", "channels", "experts"}.issuperset(units.kinds):
        raise PruningError(
            f"scope uniform is about numbers of heads, channels or experts, but granularity "
            f"{units.granularity} prunes whole ones; choose heads+channels, heads, channels, "
            "experts, heads+experts or experts+channels"
        )
    if budget != "per-kind":
        raise PruningError(
            f"scope uniform needs budget per-kind, as budget {budget} leaves open how many units "
            "of a kind a layer keeps; choose one of the two"
        )


def largest_remainder(shares: list[Fraction], sizes: list[int], chunk: int = 1) -> list[int]:
    """Rounds shares to whole capacities: floors first, then the rest by largest remainder.

    Args:
        shares: what each pool should keep, in units.
        sizes: units of each pool; only whole chunks of them can be kept.
        chunk: capacities are multiples of it.

    Returns:
        Capacities in units, whose sum is at most that of the shares.
    """
    most = [Fraction(size // chunk) for size in sizes]
    chunks = [min(share / chunk, limit) for share, limit in zip(shares, most, strict=True)]
    whole = [math.floor(share) for share in chunks]
    left = math.floor(sum(chunks)) - sum(whole)
    by_remainder = sorted(range(len(chunks)), key=lambda i: whole[i] - chunks[i])
    for i in by_remainder[:left]:
        whole[i] += 1
    return [count * chunk for count in whole]


def best_units(
    scores: Tensor, cost: Tensor, capacity: int | Tensor, first: Tensor | None = None
) -> Tensor:
    """Keeps units in descending order of score, each if it still fits.

    Args:
        scores: (p,); ties go by index.
        cost: (p,) int64, positive; or (m, p), not negative, of several bounds.
        capacity: limit of the sum of the kept units' costs; or (m,).
        first: units that are kept before all others, (p,) bool; None for none.

    Returns:
        The indices of the kept units, at most p.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    if first is not None:
        order = torch.cat([order[first[order]], order[~first[order]]])
    rows = cost.view(-1, len(scores))[:, order]
    return order[_fill(rows, torch.as_tensor(capacity).view(-1, 1))]


def best_within(
    scores: Tensor, weight: Tensor, cost: Tensor, capacity: Tensor, first: Tensor | None = None
) -> Tensor:
    """Keeps the best units within several bounds at once.

    With one bound, the order of scores keeps what is worth most, sum_i w_i z_i, but for the last
    few units. With several, a unit that is dear by the bound that binds counts less: its score
    falls by lambda A_i / w_i, as in the projection of the scores, here of sharper and sharper ones.
    The order that keeps most is taken.

    Args:
        scores: z, (p,); ties go by index.
        weight: w, (p,), positive.
        cost: A, (m, p) int64, not negative.
        capacity: (m,) int64.
        first: units that are kept before all others, (p,) bool; None for none.

    Returns:
        The indices of the kept units, at most p.
    """
    certain = scores.isposinf() if first is None else first | scores.isposinf()
    ordinary = scores[scores.isfinite()]
    low, high = (ordinary.min(), ordinary.max()) if len(ordinary) else (scores.new_zeros(()),) * 2
    worth = (scores.clamp(low, high) - low) / (high - low).clamp(min=1e-300)  # in [0, 1]
    best = best_units(scores, cost, capacity, certain)
    for sharpness in _SHARPNESS:
        z = sharpness * worth
        moved = shifts(z, weight, cost.double(), capacity.double())
        moved = z - moved.masked_fill(scores.isneginf(), math.inf)
        found = best_units(moved, cost, capacity, certain)
        if float(weight[found] @ worth[found]) > float(weight[best] @ worth[best]):
            best = found
    return best


def best_chunks(
    scores: Tensor,
    cost: Tensor,
    capacity: int | Tensor,
    group: Tensor,
    chunk: Tensor,
    weight: Tensor | None = None,
    first: Tensor | None = None,
) -> Tensor:
    """Keeps chunks of units in descending order of worth, each if it still fits.

    Args:
        scores: (p,); ties go by index.
        cost: (p,) int64, positive; or (m, p), not negative, of several bounds.
        capacity: limit of the sum of the kept units' costs; or (m,).
        group: the group of each unit, (p,) int64, ascending.
        chunk: how many units of its group are kept together, (p,) int64; the last units of a group,
            if fewer, are never kept.
        weight: of several bounds, as in ``best_within``, (p,).
        first: units whose chunks are kept before all others, (p,) bool; None for none.

    Returns:
        The indices of the kept units, at most p.
    """
    finite = scores.clamp(-_LARGEST, _LARGEST)
    rows = cost.view(-1, len(scores))  # (m, p)
    chunks, worths, costs, weights = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    firsts = list[Tensor]()
    sizes = torch.unique_consecutive(group, return_counts=True)[1]
    for members in torch.arange(len(group)).split(sizes.tolist()):
        # 1. The members of a group, best first, without an incomplete last chunk.
        size = int(chunk[members[0]])
        best_first = members[torch.argsort(scores[members], descending=True, stable=True)]
        units = best_first[: len(members) // size * size].view(-1, size)  # (chunks, size)
        # 2. A chunk is worth the mean score of its units and costs their sum.
        places = torch.arange(len(units)).repeat_interleave(size)
        sums = scores.new_zeros(len(units)).index_add_(0, places, finite[units].flatten())
        chunks.append(units)
        worths.append(sums / size)
        costs.append(rows[:, units].sum(2))
        least = 0 if first is None else -(-int(first[members].sum()) // size)
        firsts.append(torch.arange(len(units)) < least)
        if weight is not None:
            weights.append(weight[units].sum(1))
    # 3. Chunks of all groups compete for the capacity, as single units do.
    worth, costs_of_all = torch.cat(worths), torch.cat(costs, dim=1)
    needed = None if first is None else torch.cat(firsts)
    kept = torch.zeros(len(worth), dtype=torch.bool)
    if weight is None:
        best = best_units(worth, costs_of_all, capacity, needed)
    else:
        limits = torch.as_tensor(capacity)
        best = best_within(worth, torch.cat(weights), costs_of_all, limits, needed)
    kept[best] = True
    of_group = kept.split([len(units) for units in chunks])
    return torch.cat([units[best].flatten() for units, best in zip(chunks, of_group, strict=True)])


def _fill(cost: Tensor, capacity: Tensor) -> Tensor:
    """Tells which of the ordered units are kept, (p,) bool, when each is kept if it still fits.

    Args:
        cost: of the units by each bound, (m, p).
        capacity: of each bound, (m, 1).
    """
    units = cost.shape[1]
    kept = torch.zeros(units, dtype=torch.bool)
    start = 0
    while start < units:
        fits = (torch.cumsum(cost[:, start:], 1) <= capacity).all(0)
        run = int(fits.sum())  # costs are not negative, so the units that fit are a prefix
        kept[start : start + run] = True
        capacity = capacity - cost[:, start : start + run].sum(1, keepdim=True)
        rest = torch.nonzero((cost[:, start + run :] <= capacity).all(0)).flatten()
        if not len(rest):
            break
        start += run + int(rest[0])
    return kept
