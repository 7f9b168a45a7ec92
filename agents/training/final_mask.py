"""Chooses the mask that a run ships: the best of a few after repair."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pgprune.masking.problem import Problem
from pgprune.repair.config import RepairConfig, chosen_repair
from pgprune.repair.repair import Repair, repaired
from pgprune.utils.progress import track


def best_repaired(
    problem: Problem, masks: Sequence[Tensor], windows: Tensor, config: RepairConfig
) -> tuple[Tensor, Repair | None]:
    """Finds the mask with the lowest validation loss after repair, the first of equal ones.

    Args:
        problem: the model and its calibration text.
        masks: (n,) each; a single one is not evaluated.
        windows: calibration token ids to repair on, (N, T).
        config: of the repair.

    Returns:
        The mask and its repair.
    """
    found = [(mask, chosen_repair(problem.lm, mask, windows, config)) for mask in masks]
    return found[0] if len(found) == 1 else min(found, key=lambda each: _loss(problem, *each))


def _loss(problem: Problem, mask: Tensor, repair: Repair | None) -> float:
    lm = problem.lm
    rows = mask[None].to(lm.device)  # (1, n)
    with repaired(lm, repair or Repair()):
        batches = track(problem.validation.split(8), "validation", unit="batches")
        losses = torch.cat([lm.losses(rows, batch) for batch in batches], dim=1)  # (1, N)
    return float(losses.double().mean())
