"""How a budget rounds: whole capacities, and the units that fill them best.

With ``round_to`` N the channels that a layer keeps are a multiple of N. A layer's best N channels
then are one item, its next best N another, and so on; an item is worth the mean score of its
units, so that it compares with single kv groups. Items are kept in descending order of worth while
they fit. In a pool of channels alone, no mask of multiples within the budget has a higher score
sum, because a layer's items come in the order of their worth.
"""

import math
from fractions import Fraction

import torch
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits

_LARGEST = 1e300  # of the scores that are added up: beyond it sums are not numbers


def check_round_to(units: PruningUnits, round_to: int) -> None:
    """Checks that the numbers of kept channels can be multiples of N.

    Raises:
        PruningError: N is not a whole number above 0, no multiple of the channel block, or larger
            than a layer; or the units are not channels.
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
        if shape.channels < round_to:
            raise PruningError(
                f"round_to {round_to} is more than the {shape.channels} channels of layer {layer}, "
                "which could only lose them all; choose a smaller one"
            )


def check_uniform(units: PruningUnits, budget: str) -> None:
    """Checks that all layers can keep equally many units of each kind.

    Raises:
        PruningError: the units are whole blocks or layers, or the budget lets kinds trade.
    """
    if not {"heads", "channels"}.issuperset(units.kinds):
        raise PruningError(
            f"scope uniform is about numbers of heads and channels, but granularity "
            f"{units.granularity} prunes whole ones; choose heads+channels, heads or channels"
        )
    if budget != "per-kind":
        raise PruningError(
            f"scope uniform needs budget per-kind, as budget {budget} leaves open how many units "
            "of a kind a layer keeps; choose one of the two"
        )


def largest_remainder(shares: list[Fraction], sizes: list[int], chunk: int = 1) -> list[int]:
    """Whole capacities: floors, and what they leave of the sum by largest remainder.

    Args:
        shares: what each pool should keep, in units.
        sizes: units of each pool, of which only whole chunks can be kept.
        chunk: what capacities are a multiple of.

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


def best_units(scores: Tensor, cost: Tensor, capacity: int) -> Tensor:
    """The units that are kept when each is, in descending order of score, if it still fits.

    Args:
        scores: (p,); ties go by index.
        cost: (p,) int64, positive.
        capacity: what the costs of the kept units may add up to.

    Returns:
        Their indices, at most p.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    return order[_fill(cost[order], capacity)]


def best_chunks(
    scores: Tensor, cost: Tensor, capacity: int, group: Tensor, chunk: Tensor
) -> Tensor:
    """As ``best_units``, where units are kept by the chunk.

    Args:
        scores: (p,); ties go by index.
        cost: (p,) int64, positive and equal within a group.
        capacity: what the costs of the kept units may add up to.
        group: the group of each unit, (p,) int64, ascending.
        chunk: how many units of its group are kept together, (p,) int64; a group's last units that
            are fewer are never kept.

    Returns:
        The indices of the kept units, at most p.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(group[order], stable=True)]  # group by group, the best first
    sizes = torch.unique_consecutive(group, return_counts=True)[1]
    starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    first = (torch.arange(len(order)) - starts) % chunk == 0  # of its item
    item = first.cumsum(0) - 1  # (p,)
    size = chunk[first]  # (items,)
    whole = torch.nonzero(torch.bincount(item) == size).flatten()
    finite = scores[order].clamp(-_LARGEST, _LARGEST)
    worth = torch.zeros(len(size), dtype=scores.dtype).index_add_(0, item, finite) / size
    kept = whole[best_units(worth[whole], (cost[order][first] * size)[whole], capacity)]
    return order[torch.isin(item, kept)]


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
