"""The endless windows of a text, and of several texts mixed by weight."""

from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from pgprune.data.documents import Documents
from pgprune.data.tokens import BLOCK_DOCUMENTS, BlockTokens, Ids, cut, window_start
from pgprune.errors import PruningError

W = TypeVar("W")


class TextWindows:
    """The windows of one text, in an order that is a pure function of a seed.

    An epoch reads the text once: documents in memory in an order drawn from (seed, epoch), others
    as they come. Blocks of up to 1000 documents or two million characters are tokenised on demand,
    and their windows are shuffled by (seed, epoch, block). The incomplete last window of a block is
    completed from the next block; the remainder of an epoch is dropped.

    Args:
        documents: texts, or a function that reads them from the first one.
        tokenizer: a Hugging Face tokenizer; whether documents begin with BOS is its own rule.
        length: tokens of a window, T.
        name: the text's name in error messages.
        block_documents: documents of a block.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        name: str = "calibration text",
        block_documents: int = BLOCK_DOCUMENTS,
    ) -> None:
        self.length = length
        self.name = name
        self._tokens = BlockTokens(documents, tokenizer, block_documents)
        self._start = window_start(tokenizer)

    def first(self, seed: int, n: int) -> list[Ids]:
        """Returns the first n windows, or all there are, (T,) each."""
        return list(islice(self.epoch(seed, 0), n))

    def endless(self, seed: int) -> Iterator[Ids]:
        """Yields the windows of all epochs, (T,) each.

        Raises:
            PruningError: the whole text is shorter than a window.
        """
        for epoch in count():
            empty = True
            for window in self.epoch(seed, epoch):
                empty = False
                yield window
            if empty:  # else an empty text is an endless loop
                raise PruningError(too_short(self.name, self.length))

    def epoch(self, seed: int, epoch: int) -> Iterator[Ids]:
        """Yields the windows of one epoch; block 0 of its generators orders the documents."""
        blocks = self._tokens.blocks(generator(seed, epoch, 0))
        for block, windows in enumerate(cut(blocks, self.length, self._start), start=1):
            yield from generator(seed, epoch, block).permutation(windows)


class MixedWindows:
    """Windows of several texts by weight; each text has its own order and its own epochs.

    Args:
        parts: the texts, with windows of one length.
        weights: a positive number for each.
        name: the mix's name in error messages.
    """

    def __init__(self, parts: Sequence[TextWindows], weights: Sequence[float], name: str) -> None:
        self.length = parts[0].length
        self.name = name
        self._parts = parts
        self._weights = weights

    def first(self, seed: int, n: int) -> list[Ids]:
        """Returns the first n windows, or those before the first text has no more, (T,) each."""
        parts = [part.epoch(seed, 0) for part in self._parts]
        return list(islice(interleave(parts, self._weights), n))

    def endless(self, seed: int) -> Iterator[Ids]:
        """Yields windows without end, (T,) each.

        Raises:
            PruningError: a text is shorter than a window.
        """
        return interleave([part.endless(seed) for part in self._parts], self._weights)


Windows = TextWindows | MixedWindows


def interleave(parts: Sequence[Iterator[W]], weights: Sequence[float]) -> Iterator[W]:
    """Takes from several iterators in turn, each as often as its weight says, until one ends.

    Whose turn it is follows from the number of items alone, by the method of Sainte-Laguë, so
    that the shares of any first N items are those of the weights, up to about one item.
    """
    taken = [0] * len(parts)
    while True:
        turn = min(range(len(parts)), key=lambda part: (taken[part] + 0.5) / weights[part])
        item = next(parts[turn], None)
        if item is None:
            return
        taken[turn] += 1
        yield item


def generator(seed: int, epoch: int, block: int) -> np.random.Generator:
    """Returns the random numbers of a block, which make a text seekable by (seed, position)."""
    return np.random.default_rng([seed, epoch, block])


def too_short(name: str, length: int) -> str:
    """Says that a text has no window."""
    return f"{name} is shorter than one window of {length} tokens; give more text"
