"""Turns documents into token ids: on demand, block by block, nothing twice."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice, tee

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pgprune.data.documents import Documents

Ids = NDArray[np.int32]

BLOCK_DOCUMENTS = 1000
_BLOCK_CHARACTERS = 2_000_000  # a block of long documents is smaller, to bound its memory


class BlockTokens:
    """The token ids of documents, in blocks.

    It remembers the ids of documents in memory and of the first block of streamed ones, so that a
    restart, another seed or a later epoch does not tokenise them again.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: PreTrainedTokenizerBase,
        block_documents: int = BLOCK_DOCUMENTS,
    ) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._block_documents = block_documents
        self._known: dict[int, Ids] = {}

    def blocks(self, order: np.random.Generator) -> Iterator[Ids]:
        """Yields the token ids of each block, (tokens,); documents in memory are shuffled."""
        if callable(self._documents):
            documents = enumerate(self._documents())
        else:
            shuffled = order.permutation(len(self._documents)).tolist()
            documents = ((i, self._documents[i]) for i in shuffled)  # type: ignore[assignment]
        remember = True
        for block in _blocks(documents, self._block_documents):
            new = {i: text for i, text in block.items() if i not in self._known}
            ids = self._known | dict(zip(new, encode(self._tokenizer, new.values()), strict=True))
            if remember:
                self._known = ids
            remember = not callable(self._documents)  # of a stream the first block only
            yield np.concatenate([ids[i] for i in block])


def _blocks(documents: Iterable[tuple[int, str]], size: int) -> Iterator[dict[int, str]]:
    block: dict[int, str] = {}
    characters = 0
    for index, text in documents:
        block[index] = text
        characters += len(text)
        if len(block) == size or characters >= _BLOCK_CHARACTERS:
            yield block
            block, characters = {}, 0
    if block:
        yield block


def encode(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[Ids]:
    """Tokenises documents and yields the ids of each."""
    texts = iter(texts)
    # A few at a time, since a tokenizer's result is far larger than the ids in it; at first fewer,
    # since the first window is often all that is asked for.
    size = 1
    while few := list(islice(texts, size)):
        size = min(2 * size, 32)
        encoded = tokenizer(
            few,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning about long documents, which are cut later
        )
        yield from (np.array(ids, dtype=np.int32) for ids in encoded["input_ids"])


def window_start(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the token that every window begins with; None if windows begin anywhere in a text."""
    return tokenizer.bos_token_id if getattr(tokenizer, "windows_begin_with_bos", False) else None


def cut(blocks: Iterable[Ids], length: int, start: int | None = None) -> Iterator[Ids]:
    """Joins blocks of ids and yields the windows that each block completes, (M, length).

    Args:
        blocks: ids, (tokens,) each.
        length: of a window, with the start.
        start: a token that every window begins with; None for none.
    """
    rest, size = np.empty(0, dtype=np.int32), length - (start is not None)
    for block in blocks:
        joined = np.concatenate([rest, block])  # (tokens,)
        whole = len(joined) - len(joined) % size
        rest = joined[whole:]
        windows = joined[:whole].reshape(-1, size)
        yield windows if start is None else np.insert(windows, 0, start, axis=1)  # (M, length)


def measured(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, sizes: Counter[str]
) -> Iterator[Ids]:
    """Tokenises documents and adds their bytes and tokens to ``sizes`` as they are taken."""
    ahead, texts = tee(documents)  # the tokenizer reads ahead, so texts wait in the tee
    for ids, text in zip(encode(tokenizer, ahead), texts, strict=True):
        sizes.update(bytes=len(text.encode()), tokens=len(ids))
        yield ids
