"""Packs the data to finetune on, instructions or plain text, into windows of equal length.

Examples are joined in a random order and cut, so that no token of a window is padding.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pgprune.data.documents import calibration_parts
from pgprune.data.instructions import Example, read_instructions
from pgprune.data.tokens import Ids, encode, window_start
from pgprune.data.windows import interleave
from pgprune.errors import PruningError
from pgprune.utils.options import Config, option

Trained = npt.NDArray[np.bool_]
"""Which tokens of a text are trained, (n,)."""

_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class TrainingDataConfig(Config):
    """Data: what the model is finetuned on."""

    data: str | None = option(
        None,
        "Alpaca-style instructions (file or hub data set) or text as --calibration",
        unset="the run's calibration text",
        metavar="DATA",
    )
    samples: int = option(4000, "most windows to train on", minimum=1)
    tokens: str | None = option(
        None, "tokens to train on, in place of --samples", unset="as --samples", metavar="64k|2M"
    )
    sequence_length: int = option(1024, "tokens per window, at most the model's context", minimum=2)
    train_on: str = option(
        "all",
        "tokens that the loss counts: all, or those of responses",
        choices=["all", "response"],
    )

    def __post_init__(self) -> None:
        """Validates the options, and that the tokens are a number."""
        super().__post_init__()
        if self.tokens is not None:
            count_of(self.tokens)

    def windows(self, length: int) -> int:
        """Returns how many windows of a length are asked for."""
        return self.samples if self.tokens is None else math.ceil(count_of(self.tokens) / length)


def count_of(text: str) -> int:
    """Reads a number of tokens, such as 64k or 2M.

    Raises:
        PruningError: it is none.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([kMG]?)", text)
    count = int(float(found[1]) * _FACTORS[found[2]]) if found else 0
    if not count:
        raise PruningError(f"tokens must be a number such as 64k or 2M, not {text!r}")
    return count


@dataclass(frozen=True)
class TrainingWindows:
    """Windows of token ids.

    Attributes:
        ids: (N, T) int64 on the CPU.
        trained: (N, T) bool, the tokens whose prediction is learned.
        kind: ``instructions`` or ``text``.
    """

    ids: Tensor
    trained: Tensor
    kind: str

    def first(self, n: int) -> "TrainingWindows":
        """Returns the first n windows."""
        return TrainingWindows(self.ids[:n], self.trained[:n], self.kind)


def training_windows(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    samples: int,
    seed: int = 0,
    train_on: str = "all",
) -> TrainingWindows:
    """Reads the data and packs it.

    Each example begins as the tokenizer begins a text, and each response ends with the tokenizer's
    end of text, if it has one. What is in memory is shuffled; a stream is taken as it comes.

    Args:
        source: as ``pgprune.data.instructions`` describes.
        tokenizer: of the model.
        sequence_length: tokens of a window, T.
        samples: windows, at most; the data may have fewer.
        seed: of the order of the examples.
        train_on: ``all`` tokens or those of the ``response`` only.

    Raises:
        PruningError: the data cannot be read, is empty or shorter than one window, or has no
            responses to train on alone.
    """
    found = read_instructions(source)
    if found is None and train_on == "response":
        raise PruningError(
            f"train_on response needs instructions, and {source!r} is plain text; choose train_on "
            "all, or give instructions as data"
        )
    order, start = np.random.default_rng(seed), window_start(tokenizer)
    windows_of = partial(_windows, length=sequence_length, start=start)
    if found is None:
        # Of a mix, windows are taken by weight until one of its texts ends.
        parts = calibration_parts(source)
        texts = (_encode_text(_shuffled(part.documents, order), tokenizer) for part in parts)
        windows = interleave(list(map(windows_of, texts)), [part.weight for part in parts])
    else:
        windows = windows_of(_encode_examples(_shuffled(found, order), tokenizer, train_on))
    # Nothing predicts the first token of a window, so alone it gives nothing to learn.
    useful = (window for window in windows if window[1][1:].any())
    kept = list(islice(useful, samples))
    if not kept:
        raise PruningError(
            f"the training data {source!r} is shorter than one window of {sequence_length:,} "
            "tokens; give more of it, or a smaller sequence_length"
        )
    ids, trained = (torch.from_numpy(np.stack(rows)) for rows in zip(*kept, strict=True))  # (N, T)
    return TrainingWindows(ids.long(), trained, "text" if found is None else "instructions")


def _shuffled(
    values: Iterable[Any] | Callable[[], Iterable[Any]], order: np.random.Generator
) -> Iterable[Any]:
    """Orders a list at random; leaves a stream as it is."""
    if callable(values):
        return values()
    if not isinstance(values, list):
        return values
    return (values[index] for index in order.permutation(len(values)))


def _encode_text(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Ids, Trained]]:
    """Tokenises documents, all of whose tokens are trained."""
    return ((ids, np.ones(len(ids), bool)) for ids in encode(tokenizer, texts))


def _encode_examples(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, train_on: str
) -> Iterator[tuple[Ids, Trained]]:
    """Tokenises examples: the ids of each, (n,), and which of them are trained, (n,)."""
    end = tokenizer.eos_token_id
    examples = iter(examples)
    # Blocks keep a stream lazy, and a fast tokenizer busy.
    while some := list(islice(examples, 256)):
        texts = encode(tokenizer, (example.prompt + example.response for example in some))
        prompts = encode(tokenizer, (example.prompt for example in some))
        for ids in texts:
            if end is not None and ids[-1:] != [end]:
                ids = np.append(ids, np.int32(end))
            # Text and prompt are tokenised apart: a token that joins both belongs to the response.
            trained = np.ones(len(ids), bool)
            if train_on == "response":
                trained[: _common(ids, next(prompts))] = False
            yield ids, trained


def _windows(
    parts: Iterable[tuple[Ids, Trained]], length: int, start: int | None
) -> Iterator[tuple[Ids, Trained]]:
    """Joins parts and cuts them into windows, (length,) each; the remainder is lost."""
    first = np.array([] if start is None else [start], np.int32)
    ids, trained, size = np.empty(0, np.int32), np.empty(0, bool), length - len(first)
    for more, which in parts:
        ids, trained = np.append(ids, more), np.append(trained, which)
        # Examples are longer or shorter than a window; none is padded.
        while len(ids) >= size:
            yield np.append(first, ids[:size]), np.append(first < 0, trained[:size])
            ids, trained = ids[size:], trained[size:]


def _common(first: Ids, second: Ids) -> int:
    """Counts the tokens that two texts begin with alike."""
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length
