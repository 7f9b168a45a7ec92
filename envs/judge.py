"""The losses that rewards are made of, computed here or shared among replicas of the model."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pgprune.envs.nearby_repair import NearbyRepair
from pgprune.masking.layer_mask import Fill
from pgprune.masking.mask_tree import distinct
from pgprune.masking.masked_lm import MaskedLM
from pgprune.models.load import fingerprint
from pgprune.repair.repair import repaired
from pgprune.utils.memory import within_memory
from pgprune.utils.transfer import send

Alone = Callable[[Tensor, Tensor], Tensor]
"""Masks (k, n) and token ids (B, T) to losses (k, B), on one model."""


class Team(Protocol):
    """Replicas of the model that share the masks of a step."""

    @property
    def size(self) -> int:
        """How many replicas evaluate masks at the same time."""

    def ready(self, model: str) -> None:
        """Waits until all replicas are loaded, and makes sure that they have this fingerprint.

        Raises:
            PruningError: one cannot be loaded, or is of another model.
        """

    def losses(self, masks: Tensor, input_ids: Tensor, alone: Alone) -> Tensor:
        """The losses of masks (k, n) that differ on (B, T) tokens, (k, B) on the host.

        Args:
            masks: in an order in which those that share work are neighbours.
            input_ids: the batch.
            alone: evaluates masks in this process.
        """

    def follow(self, mask: Tensor, alone: Callable[[Tensor], None]) -> None:
        """Lets all replicas judge with repairs that follow a mask (n,), this one by ``alone``."""

    def close(self) -> None:
        """Sends the replicas home; again, it does nothing."""


class Judge:
    """Judges masks as the rewards want it: as they are, filled, or repaired.

    Args:
        lm: the frozen model.
        fill: what pruned inputs are in place of zero.

    Attributes:
        lm: the frozen model, whose tokens count what the whole team was asked.
        repair: of each mask before it is judged, with its weights; None for none.
    """

    def __init__(self, lm: MaskedLM, fill: Fill | None = None) -> None:
        self.lm = lm
        self.repair: NearbyRepair | None = None
        self._fill = fill
        self._team: Team | None = None

    def __call__(self, masks: Tensor, input_ids: Tensor) -> Tensor:
        """The losses: (K, n) and (B, T) int64 -> (K, B), on the model's device.

        Raises:
            ResourceError: there is not enough memory, or a replica is lost.
        """
        if self._team is None or len(masks) == 1:
            return self.alone(masks, input_ids)
        rows, where = distinct(masks)
        with self.lm.meter.counting(len(masks) * input_ids.numel()):
            losses = self._team.losses(rows, input_ids, self.alone)  # (rows, B)
        return send(losses[where], self.lm.device)

    def alone(self, masks: Tensor, input_ids: Tensor) -> Tensor:
        """The same without the team."""
        with within_memory():
            if self.repair is None:
                return self.lm.losses(masks, input_ids, self._fill)
            losses = list[Tensor]()
            for mask in masks:
                with repaired(self.lm, self.repair(mask)):
                    losses.append(self.lm.losses(mask[None], input_ids))
            return torch.cat(losses)

    def follow(self, mask: Tensor) -> None:
        """Lets the repairs follow a mask (n,)."""
        assert self.repair is not None
        with within_memory():
            if self._team is None:
                self.repair.follow(mask)
            else:
                self._team.follow(mask, self.repair.follow)

    def enlist(self, team: Team) -> None:
        """Shares the masks of a step with replicas, once they are ready.

        Raises:
            PruningError: one of them cannot work.
        """
        team.ready(fingerprint(*self.lm.model.parameters()))
        self._team = team

    def dismiss(self) -> None:
        """Goes on alone."""
        if self._team is not None:
            self._team.close()
        self._team = None
