"""Chooses the mask that a run ships: the best of a few after repair."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pgprune.agents.training.config import LEVELS
from pgprune.envs.judge import Judge
from pgprune.repair.choice import ChosenRepair, chosen_repair, judged
from pgprune.repair.config import RepairConfig
from pgprune.repair.levels import Levels
from pgprune.repair.repair import Repair, repaired
from pgprune.utils.progress import track


def final_mask(
    judge: Judge,
    masks: Sequence[Tensor],
    windows: Tensor,
    validation: Sequence[Tensor],
    config: RepairConfig,
) -> tuple[Tensor, ChosenRepair]:
    """Finds the mask with the lowest validation loss as it ships, the first of equal ones.

    Args:
        judge: computes the loss of rewards. If it has levels, the masks compete with the weights
            of these, and the best one with them and with a repair of its own, unless ``auto`` asks
            for the levels' weights.
        masks: (n,) each; equal ones are repaired once, and a single one is not compared.
        windows: calibration token ids to repair on, (N, T).
        validation: batches of token ids to choose by, (B, T) each.
        config: of the repair.

    Returns:
        The mask and its repair.
    """
    lm, held_out = judge.lm, torch.cat(list(validation))
    if judge.levels is not None:
        found = _of_levels(judge, judge.levels, masks, windows, validation, config)
    else:
        different = [mask for i, mask in enumerate(masks) if not _is_among(mask, masks[:i])]
        found = [(mask, chosen_repair(lm, mask, windows, held_out, config)) for mask in different]
    if len(found) == 1:
        return found[0]
    return min(found, key=lambda each: _loss(judge, validation, each[0], each[1].repair))


def _of_levels(
    judge: Judge,
    levels: Levels,
    masks: Sequence[Tensor],
    windows: Tensor,
    validation: Sequence[Tensor],
    config: RepairConfig,
) -> list[tuple[Tensor, ChosenRepair]]:
    """Returns the best of the masks with the weights of its levels, and as repaired if asked."""
    best = min(masks, key=lambda mask: judge.mean(mask, validation))
    (choice,) = levels.below(best[None])  # (groups,)
    (searched,) = levels.masks(choice[None])
    lm, held_out = judge.lm, torch.cat(list(validation))
    found = [(searched, judged(lm, searched, levels.repair(choice), held_out, LEVELS))]
    if config.repair != "auto":
        found.append((best, chosen_repair(lm, best, windows, held_out, config)))
    return found


def _is_among(mask: Tensor, masks: Sequence[Tensor]) -> bool:
    return any(torch.equal(mask, other) for other in masks)


def _loss(judge: Judge, validation: Sequence[Tensor], mask: Tensor, repair: Repair | None) -> float:
    rows = mask[None].to(judge.lm.device)  # (1, n)
    batches = [(batch, judge.dense(batch)) for batch in validation]  # before the weights change
    with repaired(judge.lm, repair or Repair()):
        each = track(batches, "validation", unit="batches")
        losses = torch.cat([judge.losses(rows, *batch) for batch in each], dim=1)  # (1, N)
    return float(losses.double().mean())
