"""Fits the repair that the options ask for, and ships it only if held-out text says so."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgprune.masking.masked_lm import MaskedLM
from pgprune.repair.config import RepairConfig
from pgprune.repair.fit import fit_repair
from pgprune.repair.repair import Repair, repaired
from pgprune.utils.progress import note, track


@dataclass(frozen=True)
class ChosenRepair:
    """What comes with a mask.

    Attributes:
        asked: the choice of ``RepairConfig``, or ``levels`` for the weights of levels.
        repair: what is shipped; None for the mask alone.
        losses: on held-out windows, ``masked`` of the mask alone and ``repaired``; empty where
            nothing was fitted.
    """

    asked: str
    repair: Repair | None = None
    losses: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the repair, or removes the one that a run left when it was interrupted.

        Raises:
            OSError: the disk is full or refuses.
        """
        if self.repair is None:
            path.unlink(missing_ok=True)
        else:
            self.repair.save(path)

    def facts(self) -> dict[str, Any]:
        """Returns what results.json says of it."""
        shipped = self.repair is not None
        return {"asked": self.asked, "shipped": shipped, "held_out_loss": self.losses}


def chosen_repair(
    lm: MaskedLM,
    mask: Tensor,
    windows: Tensor,
    held_out: Tensor,
    config: RepairConfig,
    own: Repair | None = None,
) -> ChosenRepair:
    """Fits the repair that the options ask for, and drops it if it does harm.

    A repair is judged by the loss of the whole model on windows that it is not fitted to. Where the
    mask alone has the lower loss, the mask ships alone, and a sentence says so. What a method
    brings is a part of the method and not judged.

    Args:
        lm: the frozen model.
        mask: (n,) of zeros and ones.
        windows: calibration token ids, (N, T).
        held_out: more of them, which ``windows`` do not hold, (M, T).
        config: the options.
        own: the repair that the method brings, taken where the option is ``auto``.

    Raises:
        PruningError: as ``fit_repair``.
    """
    how = config.repair
    if how in ("auto", "none"):
        return ChosenRepair(how, own if how == "auto" else None)
    choosing = held_out if config.chooses_damping else None
    repair = fit_repair(
        lm,
        mask,
        windows,
        how,
        config.damping,
        choosing,
        relative=config.repair_errors == "relative",
    )
    return judged(lm, mask, repair, held_out, how)


def judged(
    lm: MaskedLM, mask: Tensor, repair: Repair, held_out: Tensor, asked: str
) -> ChosenRepair:
    """Ships a repair of a mask (n,) unless its loss on held-out windows (M, T) is the higher one.

    What was ``asked`` for names the repair: a choice of ``RepairConfig``, or ``levels``.
    """
    losses = {"masked": _loss(lm, mask, Repair(), held_out)}
    losses["repaired"] = _loss(lm, mask, repair, held_out)
    if losses["repaired"] <= losses["masked"]:
        return ChosenRepair(asked, repair, losses)
    note(
        f"the mask ships without repair {asked}, which does harm on held-out windows of "
        f"calibration text: loss {losses['repaired']:.4f}, without it {losses['masked']:.4f}"
    )
    return ChosenRepair(asked, None, losses)


def _loss(lm: MaskedLM, mask: Tensor, repair: Repair, windows: Tensor) -> float:
    rows = mask[None].to(lm.device)  # (1, n)
    with repaired(lm, repair):
        batches = track(windows.split(8), "held-out windows", unit="batches")
        losses = torch.cat([lm.losses(rows, batch) for batch in batches], dim=1)  # (1, N)
    return float(losses.double().mean())
