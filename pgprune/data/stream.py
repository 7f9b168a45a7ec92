"""Windows of token ids: the endless calibration stream and the evaluation sets.

Documents are tokenised one by one, with the special tokens that the tokenizer adds by itself. They
are joined and cut into windows of equal length, which may straddle documents.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count, islice, product
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pgprune.data.documents import Documents, evaluation_documents, iterate
from pgprune.data.sources import absolute_source
from pgprune.data.tokens import Ids, cut, measured, window_start
from pgprune.data.windows import Windows, generator, too_short
from pgprune.errors import PruningError
from pgprune.utils.options import Config, option
from pgprune.utils.progress import note, track

MOST_TOKENS = 2**19
"""Tokens of an evaluation text at most, where nothing else is asked: 4,096 windows of 128."""


@dataclass(frozen=True)
class DataConfig(Config):
    """Data: the text, and how it is cut into windows."""

    calibration: str = option(
        "builtin",
        "text to choose masks by: builtin, c4, files, name:config:split, or a mix",
        metavar="TEXT",
    )
    evaluation: str = option(
        "builtin",
        "texts to measure perplexity on: builtin, c4, wikitext2, files or others",
        metavar="TEXT",
    )
    sequence_length: int = option(128, "tokens per window", minimum=2)
    batch_size: int = option(8, "windows per calibration batch", minimum=1)
    calibration_samples: int | None = option(
        None, "calibration windows to use, revisited in epochs", minimum=1, unset="all the text"
    )
    evaluation_windows: int | None = option(
        None,
        "windows of each evaluation text, from its beginning",
        minimum=1,
        unset="as many as the dense perplexity needs for a standard error of 1 %",
    )
    evaluation_lengths: tuple[int, ...] | None = option(
        None,
        "tokens of evaluation windows; every text is read at each length",
        minimum=2,
        unset="--sequence-length",
    )

    def absolute(self) -> Self:
        """Returns the options with absolute paths of files."""
        texts = absolute_source(self.calibration), absolute_source(self.evaluation)
        return replace(self, calibration=texts[0], evaluation=texts[1])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of the windows that texts are evaluated in."""
        return self.evaluation_lengths or (self.sequence_length,)

    @property
    def longest(self) -> int:
        """Tokens of the longest window of all."""
        return max(self.sequence_length, *self.lengths)

    @property
    def until_sure(self) -> bool:
        """Whether the dense model's losses decide how many windows are evaluated."""
        return self.evaluation_windows is None

    def __post_init__(self) -> None:
        """Validates the options, and that the samples fill a batch."""
        super().__post_init__()
        _check_samples(self.calibration_samples, self.batch_size)


class CalibrationStream:
    """An endless sequence of batches of token ids, whose whole state is (seed, position).

    Batch p is windows p*B to (p+1)*B of the endless windows, so a batch may straddle two epochs.
    With ``samples=N`` the stream has the first N windows only: in the same order at first, and
    reshuffled by (seed, epoch) in each later epoch.

    Args:
        windows: of a text or a mix, (T,) each.
        batch_size: windows of a batch, B.
        seed: the seed of all shuffling, at least 0.
        samples: size of the finite set, at least ``batch_size``; None takes all text.

    Attributes:
        position: batches taken since the start.
        seed: the seed.

    Raises:
        PruningError: a negative seed, or fewer samples than a batch has.
    """

    position: int
    seed: int
    _sequence: Iterator[Ids] | None  # from the position on; None until the next batch is taken

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        seed: int = 0,
        samples: int | None = None,
    ) -> None:
        _check_samples(samples, batch_size)
        self.batch_size = batch_size
        self.samples = samples
        self._windows = windows
        self.reseed(seed)

    @property
    def sequence_length(self) -> int:
        """Tokens of a window, T."""
        return self._windows.length

    def next(self) -> Tensor:
        """Takes the next batch.

        Returns:
            Token ids, (B, T) int64 on the CPU.

        Raises:
            PruningError: the whole text is shorter than one window.
        """
        if self._sequence is None:
            self._sequence = islice(self._endless(), self.position * self.batch_size, None)
        batch = _stack(islice(self._sequence, self.batch_size), self.sequence_length)
        self.position += 1
        return batch

    def seek(self, position: int) -> None:
        """Moves to a position, whose batch is the one that a stream from the start gives there."""
        if position < 0:
            raise PruningError(f"stream position {position} is negative")
        self.position = position
        self._sequence = None

    def reseed(self, seed: int) -> None:
        """Starts over, at position 0, with another seed."""
        if seed < 0:
            raise PruningError(f"seed {seed} is negative; choose 0 or more")
        self.seed = seed
        self.seek(0)

    def fork(self, seed: int) -> "CalibrationStream":
        """Returns an independent stream over the same text, with another seed, at position 0."""
        other = copy.copy(self)  # shares the tokenised text
        other.reseed(seed)  # does not share the position
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the iterator, which cannot be copied; seed and position tell it again."""
        return vars(self) | {"_sequence": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "CalibrationStream":
        """Copies seed and position; the tokenised text is shared."""
        return copy.copy(self)

    def head(self, n: int, fewer: bool = False) -> Tensor:
        """Returns the first n windows of the sequence, or all samples; the position stays.

        Args:
            n: windows.
            fewer: whether all windows of a shorter text will do; a note says how many these are.

        Returns:
            Token ids, (n, T) int64 on the CPU.

        Raises:
            PruningError: the text has fewer windows, and ``fewer`` will not do.
        """
        n = min(n, self.samples or n)
        windows = self.first(n)
        if len(windows) < n:
            few = f"{self._windows.name} has only {len(windows)} windows of {self.sequence_length}"
            few += f" tokens, fewer than the {n} asked for"
            if not fewer:
                raise PruningError(f"{few}; give more text or ask for fewer")
            note(few)
        return windows

    def first(self, n: int) -> Tensor:
        """Returns the first n windows in this seed's order, or all there are, (at most n, T)."""
        return _stack(self._windows.first(self.seed, n), self.sequence_length)

    def _endless(self) -> Iterator[Ids]:
        """Yields the windows of all epochs, (T,) each."""
        if self.samples is not None:
            windows = self.head(self.samples).numpy()  # (N, T)
            yield from windows  # the first epoch has the order of the whole text
            for epoch in count(1):
                yield from generator(self.seed, epoch, 0).permutation(windows)
        yield from self._windows.endless(self.seed)


@dataclass(frozen=True)
class EvaluationSet:
    """One evaluation text, cut.

    Attributes:
        windows: the first windows in the text's order, (N, T) int64 on the CPU.
        bytes_per_token: UTF-8 bytes of the documents that were read for them, by their tokens.
        decided: whether all these windows are to be evaluated, and not as many as are enough.
    """

    windows: Tensor
    bytes_per_token: float
    decided: bool = True

    def first(self, n: int) -> "EvaluationSet":
        """Returns the set of the first n windows, which is decided."""
        return replace(self, windows=self.windows[:n], decided=True)


def evaluation_sets(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, EvaluationSet]:
    """Cuts the evaluation texts.

    Returns:
        Each set by its name, of at most ``config.evaluation_windows`` windows; of at most
        ``MOST_TOKENS`` where these are to be decided by ``until_sure``. Windows of another length
        than ``config.sequence_length`` hold as many tokens together, and the set's name ends in
        their length, such as ``wikitext2@2048``.

    Raises:
        PruningError: a text cannot be read, or is shorter than a window.
    """
    usual, windows = config.sequence_length, config.evaluation_windows
    most = MOST_TOKENS if windows is None else windows * usual
    texts = product(evaluation_documents(config.evaluation).items(), config.lengths)
    sets = dict[str, EvaluationSet]()
    for (name, documents), length in track(list(texts), "reading the evaluation texts"):
        text = _evaluation_set(name, documents, tokenizer, length, max(1, most // length))
        own = name if length == usual else f"{name}@{length}"
        sets[own] = replace(text, decided=not config.until_sure)
    return sets


def _evaluation_set(
    name: str, documents: Documents, tokenizer: PreTrainedTokenizerBase, length: int, most: int
) -> EvaluationSet:
    sizes: Counter[str] = Counter()
    ids, start = measured(iterate(documents), tokenizer, sizes), window_start(tokenizer)
    windows = list(islice(chain.from_iterable(cut(ids, length, start)), most))
    if not windows:
        raise PruningError(too_short(f"the evaluation text {name!r}", length))
    return EvaluationSet(_stack(windows, length), sizes["bytes"] / sizes["tokens"])


def evaluation_windows(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Returns the windows of ``evaluation_sets``, (N, T) each."""
    return {name: text.windows for name, text in evaluation_sets(config, tokenizer).items()}


def first_windows(windows: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns the first windows of each set, as many as its count; all where it has none."""
    return {name: ids[: counts.get(name, len(ids))] for name, ids in windows.items()}


def check_sequence_length(model_config: Any, sequence_length: int) -> None:
    """Checks that a model can read windows of a length.

    Raises:
        PruningError: the window is longer than the model's context.
    """
    limit = getattr(model_config, "max_position_embeddings", None)
    if isinstance(limit, int) and sequence_length > limit:
        raise PruningError(
            f"sequence_length {sequence_length} is more than the model's context of {limit} "
            f"tokens; choose at most {limit}"
        )


def _stack(windows: Iterable[Ids], length: int) -> Tensor:
    return torch.from_numpy(np.array(list(windows), dtype=np.int64).reshape(-1, length))


def _check_samples(samples: int | None, batch_size: int) -> None:
    if samples is not None and samples < batch_size:
        raise PruningError(
            f"calibration_samples {samples} is less than one batch of {batch_size}; choose at "
            f"least {batch_size} or a smaller batch_size"
        )
