"""The projection of scores onto a relaxed budget: one shift for a pool of units.

Without a shift of its own, a unit keeps clip(z - v, 0, 1); v is the smallest that fits the budget.
"""

import math

import torch
from torch import Tensor

from pgprune.errors import PruningError

_BISECTIONS = 32  # leaves the shift within 2^-32 of exact; one linear step makes it exact
_ORDINARY = 2.0**20  # larger scores lose what is small beside them: 1 is nothing beside 1e18
_FEW = 10_000  # scores; on a CPU with more of them, arithmetic costs more than calls


def ordinary(z: Tensor) -> Tensor:
    """Moves large scores, (n,), together without a change of their projection, which is exact then.

    What is below 0 projects to 0. A shift leaves scores that are more than 1 apart on both sides of
    the interval [0, 1], so that such a gap may be any other above 1. On a GPU, where a look at the
    values would wait for it, and without large scores, they stay as they are.

    Raises:
        PruningError: a score is not a number.
    """
    if z.device.type != "cpu" or bool((z.abs() < _ORDINARY).all()):
        return z
    if bool(z.isnan().any()):
        raise PruningError(no_numbers(z, len(z)))
    near = z.clamp(min=0)
    large = near > 1
    base = near[~large].max() if bool((~large).any()) else z.new_zeros(())
    values, order = near[large].sort()
    gaps = (values - torch.cat([base[None], values[:-1]])).nan_to_num(0, posinf=2)  # inf - inf
    moved = torch.empty_like(values)
    moved[order] = base + gaps.clamp(max=2).cumsum(0)
    return near.masked_scatter(large, moved)


def project_pool(z: Tensor, cost: Tensor, share: float, most: Tensor | None) -> Tensor:
    """Computes clip(z - v, 0, 1) with the smallest v >= 0 whose cost is within ``share``.

    Shifts of single scores end at ``most``, (p,), where that is not None.
    """
    least = shift(z, cost, share, most)
    return (z - (least if most is None else torch.minimum(least, most))).clamp(0, 1)


def shift(z: Tensor, cost: Tensor | None, share: float, most: Tensor | None = None) -> Tensor:
    """Computes the shift v of ``project_pool``, (); without ``cost`` each score costs 1.

    The cost sum_i c_i clip(z_i - v, 0, 1) falls with v, and v = max z costs nothing, so the root is
    in [0, max z] and a search by sections finds it.
    """
    cost = torch.ones_like(z) if cost is None else cost
    low, width = torch.zeros_like(z[0]), z.max().clamp(min=0)
    # S sections need log2(S) times fewer rounds than halving, and S - 1 times the arithmetic in
    # each. On a GPU or for few scores a round costs a launch, so 8; else the arithmetic counts.
    sections = 2 if z.device.type == "cpu" and len(z) > _FEW else 8
    inner = torch.arange(1, sections, dtype=z.dtype, device=z.device) / sections
    kept = z.new_empty(sections - 1, len(z))  # the same memory in each round
    for _ in range(math.ceil(_BISECTIONS / math.log2(sections))):
        shifts = (low + width * inner)[:, None]  # (sections - 1, 1)
        shifts = shifts if most is None else torch.minimum(shifts, most)
        over = torch.sub(z, shifts, out=kept).clamp_(0, 1) @ cost > share
        width = width / sections
        low = low + width * over.sum()  # counted on the device, so that the host does not wait
    # Between its breakpoints z - 1 and z the cost is linear in v. With A = {0 < z - v < 1} it is
    # sum_A c (z - v) + sum of c (z - v) of what is clipped, so v = (sum_A c z + that - share) /
    # sum_A c. Scores that have reached their last shift are not in A.
    high = low + width
    gap = z - (high if most is None else torch.minimum(high, most))
    inside = (gap > 0) & (gap < 1) & (True if most is None else high < most)
    active = cost * inside
    fixed = gap.clamp(0, 1).masked_fill(inside, 0)
    exact = (active @ z + cost @ fixed - share) / active.sum()
    return torch.where(exact.isfinite(), exact, high).clamp(low, high)


def no_numbers(scores: Tensor, n: int) -> str:
    """Says that scores are not n numbers."""
    return (
        f"scores must be {n} numbers, got shape {tuple(scores.shape)} with "
        f"{int(scores.isnan().sum())} not-a-number entries"
    )
