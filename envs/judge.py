"""Computes the losses of rewards, here or shared among replicas of the model."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pgprune.envs.nearby_repair import NearbyRepair
from pgprune.envs.precision import matmul_precision
from pgprune.losses.divergence import Predictions
from pgprune.masking.layer_mask import Fill
from pgprune.masking.mask_tree import distinct
from pgprune.masking.masked_lm import MaskedLM
from pgprune.models.load import fingerprint
from pgprune.repair.levels import Levels
from pgprune.repair.repair import repaired
from pgprune.utils.memory import within_memory
from pgprune.utils.progress import track
from pgprune.utils.transfer import send

Evaluate = Callable[[Tensor, Tensor], Tensor]
"""Masks (k, n) and token ids (B, T) to losses (k, B), in this process."""


class Replicas(Protocol):
    """Copies of the model in other processes that share the masks of a step."""

    @property
    def size(self) -> int:
        """Number of replicas that evaluate masks at the same time."""

    def ready(self, model: str) -> None:
        """Waits until all replicas are loaded with a model of a fingerprint.

        Raises:
            PruningError: one cannot be loaded, or is of another model.
        """

    def losses(self, masks: Tensor, input_ids: Tensor, local: Evaluate) -> Tensor:
        """Evaluates different masks: (k, n) on (B, T) tokens -> (k, B), on the host.

        Args:
            masks: in an order in which masks that share work are neighbours.
            input_ids: the batch.
            local: evaluates masks in this process.
        """

    def follow(self, mask: Tensor, local: Callable[[Tensor], None]) -> None:
        """Lets the repairs of all replicas follow a mask (n,); ``local`` does so here."""

    def close(self) -> None:
        """Stops the replicas. Safe to call twice."""


class Judge:
    """Evaluates masks as the rewards want it: as they are, filled, or repaired.

    Args:
        lm: the frozen model, whose meter counts the tokens of all replicas.
        fill: stands in place of pruned inputs, which are zero by default.
        top: the loss is the KL divergence from the dense model's predictions, of which this many
            tokens are told apart; None for cross-entropy.
        precision: of products of float32 matrices, as ``matmul_precision`` takes it.

    Attributes:
        lm: as given.
        levels: give each mask the weights of the levels that it reaches; None for other weights.
    """

    def __init__(
        self,
        lm: MaskedLM,
        fill: Fill | None = None,
        top: int | None = None,
        precision: str = "highest",
    ) -> None:
        self.lm = lm
        self._precision = precision
        self._fill = fill
        self._top = top
        self._remembered = dict[bytes, Predictions]()
        self._repair: NearbyRepair | None = None
        self.levels: Levels | None = None
        self._replicas: Replicas | None = None

    def __call__(self, masks: Tensor, input_ids: Tensor) -> Tensor:
        """Computes losses: (K, n) and (B, T) int64 -> (K, B), on the model's device.

        Raises:
            ResourceError: there is not enough memory, or a replica is lost.
        """
        if self._replicas is None or len(masks) == 1:
            return self.local(masks, input_ids)  # one mask cannot be shared
        rows, where = distinct(masks)
        passes = len(masks) + (self._top is not None and self._kept(input_ids) is None)
        # Replicas evaluate equal masks once, but the count must not depend on who evaluates.
        with self.lm.meter.counting(passes * input_ids.numel()):
            losses = self._replicas.losses(rows, input_ids, self.local)  # (rows, B)
        return send(losses[where], self.lm.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Judge":
        """Copies what may change; the frozen model, its levels and its replicas are shared."""
        memo |= {id(part): part for part in (self.lm, self.levels, self._replicas)}
        other = memo[id(self)] = copy.copy(self)
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other

    def local(self, masks: Tensor, input_ids: Tensor) -> Tensor:
        """Computes the same losses without replicas."""
        with within_memory(), matmul_precision(self._precision):
            dense = self.dense(input_ids)
            if self.levels is not None:
                masks = self.levels.masks(self.levels.below(masks))
                with self.lm.refitted(self.levels.weight):
                    return self.losses(masks, input_ids, dense)
            if self._repair is None:
                return self.losses(masks, input_ids, dense, self._fill)
            losses = list[Tensor]()
            for mask in track(masks, "masks"):  # each has other weights, so no two share a pass
                with repaired(self.lm, self._repair(mask)):
                    losses.append(self.losses(mask[None], input_ids, dense))
            return torch.cat(losses)

    def mean(self, mask: Tensor, batches: Sequence[Tensor]) -> float:
        """Computes the loss of a mask (n,), the mean over all sequences of batches (B, T) each."""
        row = mask[None].to(self.lm.device)  # (1, n)
        losses = [self(row, batch) for batch in track(batches, "validation", unit="batches")]
        return float(torch.cat(losses, dim=1).double().mean())

    def dense(self, input_ids: Tensor) -> Predictions | None:
        """Returns the dense predictions of a batch, if the loss compares with them.

        Call it while the model has its own weights. It costs one pass, except for a batch that is
        remembered.
        """
        if self._top is None:
            return None
        return self._kept(input_ids) or self.lm.dense_predictions(input_ids, self._top)

    def losses(
        self, masks: Tensor, input_ids: Tensor, dense: Predictions | None, fill: Fill | None = None
    ) -> Tensor:
        """Computes losses of the model as it stands: (K, n) and (B, T) -> (K, B)."""
        if dense is None:
            return self.lm.losses(masks, input_ids, fill)
        return self.lm.divergences(masks, input_ids, dense, fill)

    def remember(self, batches: Sequence[Tensor]) -> None:
        """Keeps the dense predictions of batches (B, T) that are evaluated again and again."""
        if self._top is None:
            return
        with within_memory():
            for input_ids in track(batches, "dense predictions", unit="batches"):
                kept = self.lm.dense_predictions(input_ids, self._top)
                self._remembered[_key(input_ids)] = kept

    def use(self, repair: NearbyRepair) -> None:
        """Gives each mask the weights of a repair from now on."""
        self._repair = repair

    def follow(self, mask: Tensor) -> None:
        """Lets the repair follow a mask (n,), here and in all replicas."""
        assert self._repair is not None
        with within_memory():
            if self._replicas is None:
                self._repair.follow(mask)
            else:  # each replica measures the moments itself; they are too large to send
                self._replicas.follow(mask, self._repair.follow)

    def share(self, replicas: Replicas) -> None:
        """Shares the masks of a step with replicas, once they are ready.

        Raises:
            PruningError: one of them cannot work.
        """
        replicas.ready(fingerprint(*self.lm.model.parameters()))
        self._replicas = replicas

    def stop(self) -> None:
        """Stops the replicas, and evaluates in this process only. Safe to call twice."""
        if self._replicas is not None:
            self._replicas.close()
        self._replicas = None

    def _kept(self, input_ids: Tensor) -> Predictions | None:
        return self._remembered.get(_key(input_ids)) if self._remembered else None


def _key(input_ids: Tensor) -> bytes:
    """Identifies a batch by its shape and content."""
    return repr(tuple(input_ids.shape)).encode() + input_ids.numpy(force=True).tobytes()
