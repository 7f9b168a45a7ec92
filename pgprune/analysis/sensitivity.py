"""Measures how much the loss rises when a single group of units is pruned and nothing else is."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pgprune.losses.windows import window_losses
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import Group, PruningUnits
from pgprune.metrics.importance import places
from pgprune.utils.progress import phase

KEPT = (0.75, 0.5, 0.0)
"""Shares of its units that a group keeps."""

_TOGETHER = 8  # masks of one call, which runs the layers before the first pruned one once


@dataclass(frozen=True)
class Sensitivity:
    """How much the loss rises when one group keeps a part of its units.

    Attributes:
        group: the layer and the kind.
        kept: how many units it keeps at each of ``KEPT``.
        rises: of the loss, in nats a token.
        errors: standard errors of the rises over windows; NaN for one window.
    """

    group: Group
    kept: list[int]
    rises: list[float]
    errors: list[float]


def sensitivities(lm: MaskedLM, scores: Tensor, windows: Tensor) -> list[Sensitivity]:
    """Measures every group that has units.

    Args:
        lm: the frozen model.
        scores: importance of the units, (n,), which compare within a group.
        windows: token ids, (N, T).
    """
    units = lm.units
    groups = [group for group in units.groups if group.stop > group.start]
    counts = [kept_units(units, group) for group in groups]
    rows = group_masks(units, scores, groups, counts)  # (groups * levels, n)
    masks = torch.cat([units.ones()[None], rows])
    found = list[Tensor]()
    with phase("sensitivity", len(masks), "masks") as work:
        for few in masks.split(_TOGETHER):
            found.append(window_losses(partial(lm.losses, few), windows, label="windows"))
            work.advance(len(few))
    losses = torch.cat(found)  # (1 + groups * levels, N) float64, of the dense model first
    rises = (losses[1:] - losses[0]).view(len(groups), len(KEPT), -1)
    means = rises.mean(-1).tolist()
    count = rises.shape[-1]
    spread = rises.std(-1) if count > 1 else torch.full_like(rises[..., 0], torch.nan)
    errors = spread / count**0.5
    return [
        Sensitivity(group, *values)
        for group, *values in zip(groups, counts, means, errors.tolist(), strict=True)
    ]


def kept_units(units: PruningUnits, group: Group) -> list[int]:
    """Counts the units that a group keeps at each of ``KEPT``, at least those that it must."""
    least = int(units.least[units.groups.index(group)])
    return [max(least, int(share * (group.stop - group.start))) for share in KEPT]


def group_masks(
    units: PruningUnits, scores: Tensor, groups: list[Group], counts: list[list[int]]
) -> Tensor:
    """Makes a mask for each group and number of units, which prunes that group alone.

    Returns:
        Group by group, number by number, (groups * levels, n) uint8.
    """
    place, _ = places(units, scores.cpu())  # 0 for the best of a group
    masks = units.ones().repeat(len(groups) * len(KEPT), 1)
    row = 0
    for group, numbers in zip(groups, counts, strict=True):
        own = slice(group.start, group.stop)
        for number in numbers:
            masks[row, own] = (place[own] < number).to(masks.dtype)
            row += 1
    return masks
