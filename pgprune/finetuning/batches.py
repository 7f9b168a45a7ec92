"""Batches of windows to train on, each a function of the number of the update.

Where windows are to be held out, a text is an endless stream that never gives them; else windows
are read once and revisited in epochs.
"""

import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pgprune.data.calibration import SHARE, open_calibration
from pgprune.data.instructions import read_instructions
from pgprune.data.stream import CalibrationStream, DataConfig
from pgprune.data.training_data import (
    TrainingDataConfig,
    TrainingWindows,
    training_windows,
)
from pgprune.errors import PruningError
from pgprune.models.load import fingerprint
from pgprune.utils.progress import note


class Batches(Protocol):
    """The batches of a training.

    Attributes:
        total: updates.
        facts: what is trained on, for the record.
    """

    total: int
    facts: dict[str, Any]

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns the windows of an update: ids and what is trained of them, (B, T) each."""

    def first(self, n: int) -> Tensor:
        """Returns the first n windows, or all there are, (at most n, T)."""

    def fingerprint(self) -> str:
        """Returns a digest of what is trained on."""


class EpochBatches:
    """Windows that are in memory, in a new order in each epoch.

    Args:
        windows: all of them.
        batch_size: windows of an update.
        seed: of the order.
        total: updates.
    """

    def __init__(self, windows: TrainingWindows, batch_size: int, seed: int, total: int) -> None:
        self._windows, self._size, self._seed, self.total = windows, batch_size, seed, total
        self._per_epoch = math.ceil(len(windows.ids) / batch_size)
        self.facts = {
            "kind": windows.kind,
            "windows": len(windows.ids),
            "sequence_length": windows.ids.shape[1],
            "trained_share": float(windows.trained.double().mean()),
        }

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns a batch, as ``Batches``."""
        epoch, index = divmod(step, self._per_epoch)
        # The order is a function of (seed, epoch), so a resumed training needs no generator state.
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._windows.ids))
        rows = torch.from_numpy(order[index * self._size :][: self._size])
        return self._windows.ids[rows], self._windows.trained[rows]

    def first(self, n: int) -> Tensor:
        """Returns the first n windows, or all there are, (at most n, T)."""
        return self._windows.ids[:n]

    def fingerprint(self) -> str:
        """Returns a digest of what is trained on."""
        return fingerprint(self._windows.ids, self._windows.trained)


class StreamBatches:
    """Batches of an endless text, all of whose tokens are trained.

    Args:
        stream: of the text, without what is held out of it.
        total: updates.
    """

    def __init__(self, stream: CalibrationStream, total: int) -> None:
        self._stream, self.total = stream, total
        self.facts = {
            "kind": "text",
            "windows": total * stream.batch_size,
            "sequence_length": stream.sequence_length,
            "trained_share": 1.0,
        }

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns a batch, as ``Batches``."""
        if self._stream.position != step:
            self._stream.seek(step)
        ids = self._stream.next()
        return ids, torch.ones_like(ids, dtype=torch.bool)

    def first(self, n: int) -> Tensor:
        """Returns the first n windows, or all there are, (at most n, T)."""
        return self._stream.first(n)

    def fingerprint(self) -> str:
        """Returns a digest of what is trained on."""
        return fingerprint(self._stream.first(self._stream.batch_size))


def open_data(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    config: TrainingDataConfig,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    hold_out: int,
) -> tuple[Batches, Tensor]:
    """Opens what is trained on.

    Args:
        source: instructions or text, as ``training_windows``.
        tokenizer: of the model.
        length: tokens of a window, T.
        config: how much of it.
        batch_size: windows of an update.
        epochs: passes over the data, where ``config`` does not say how many tokens.
        seed: of the order.
        hold_out: windows that are not trained on, at most.

    Returns:
        The batches, and what is held out, (at most ``hold_out``, T).

    Raises:
        PruningError: as ``training_windows``.
    """
    asked = config.windows(length)
    endless = hold_out > 0 or config.tokens is not None
    if endless and config.train_on == "all" and read_instructions(source) is None:
        stream, held = open_text(source, tokenizer, length, batch_size, seed)
        return StreamBatches(stream, math.ceil(asked * epochs / batch_size)), held[:hold_out]
    windows = training_windows(source, tokenizer, length, asked, seed, config.train_on)
    # At most a sixteenth is held out, as of a text.
    held = windows.ids[len(windows.ids) - min(hold_out, math.ceil(len(windows.ids) / SHARE)) :]
    if hold_out and len(windows.ids) == 1:
        raise PruningError(
            f"the training data {source!r} is one window, so that none can be held out; give more"
        )
    windows = windows.first(len(windows.ids) - len(held)) if hold_out else windows
    count = len(windows.ids)
    if count < asked and config.tokens is None:
        note(f"the training data has {count:,} windows, so --samples is {count:,}")
    per_epoch = math.ceil(count / batch_size)
    total = per_epoch * epochs if config.tokens is None else math.ceil(asked / batch_size)
    return EpochBatches(windows, batch_size, seed, total), held


def open_text(
    source: str, tokenizer: PreTrainedTokenizerBase, length: int, batch_size: int, seed: int
) -> tuple[CalibrationStream, Tensor]:
    """Opens a text as an endless stream, and as windows (V, T) that the stream never gives.

    Raises:
        PruningError: the text cannot be read, or is too short.
    """
    config = DataConfig(calibration=source, sequence_length=length, batch_size=batch_size)
    return open_calibration(config, tokenizer, seed)
