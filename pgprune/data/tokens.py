"""From documents to token ids: lazily, block by block, nothing tokenised twice."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pgprune.data.documents import Documents

Ids = NDArray[np.int32]

_BLOCK_DOCUMENTS = 1000
_BLOCK_CHARACTERS = 2_000_000


class BlockTokens:
    """The token ids of documents, in blocks.

    Kept are those of documents in memory and of the first block, so that starting over, other
    seeds and later epochs tokenise nothing twice.
    """

    def __init__(self, documents: Documents, tokenizer: PreTrainedTokenizerBase) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._kept: dict[int, Ids] = {}

    def blocks(self, order: np.random.Generator) -> Iterator[Ids]:
        """Goes through the text once; documents in memory are shuffled."""
        if callable(self._documents):
            documents = enumerate(self._documents())
        else:
            shuffled = order.permutation(len(self._documents)).tolist()
            documents = ((i, self._documents[i]) for i in shuffled)  # type: ignore[assignment]
        keeps = True
        for block in _blocks(documents):
            new = {i: text for i, text in block.items() if i not in self._kept}
            ids = self._kept | dict(zip(new, encode(self._tokenizer, new.values()), strict=True))
            if keeps:
                self._kept = ids
            keeps = not callable(self._documents)
            yield np.concatenate([ids[i] for i in block])


def _blocks(documents: Iterable[tuple[int, str]]) -> Iterator[dict[int, str]]:
    block: dict[int, str] = {}
    characters = 0
    for index, text in documents:
        block[index] = text
        characters += len(text)
        if len(block) == _BLOCK_DOCUMENTS or characters >= _BLOCK_CHARACTERS:
            yield block
            block, characters = {}, 0
    if block:
        yield block


def encode(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[Ids]:
    """Tokenises documents, a few at a time: a tokenizer holds far more than ids of each."""
    texts = iter(texts)
    while some := list(islice(texts, 32)):
        encoded = tokenizer(
            some,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # documents may be longer than the model's context: they will be cut
        )
        yield from (np.array(ids, dtype=np.int32) for ids in encoded["input_ids"])


def cut(parts: Iterable[Ids], length: int) -> Iterator[Ids]:
    """Joins parts and cuts: yields the whole windows (M, length) that each part completes."""
    rest = np.empty(0, dtype=np.int32)
    for part in parts:
        joined = np.concatenate([rest, part])
        whole = len(joined) - len(joined) % length
        rest = joined[whole:]
        yield joined[:whole].reshape(-1, length)
