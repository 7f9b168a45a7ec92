"""Documents of text sources: the built-in text, data sets of the hub, local files.

A source is one item or several joined by commas. An item is

* ``builtin``: the standard library's sources and Python's language reference; ``builtin:code`` and
  ``builtin:prose`` are one of them;
* a local ``.txt`` (one document), ``.jsonl`` (one document a line, field ``text``) or ``.parquet``
  file (one document a row), the first two perhaps with ``.gz``, or a directory of such files;
* ``c4`` or ``wikitext2``, from a local folder or the hub (``known_texts``);
* a data set of the hub with config and split, ``allenai/c4:en:train``, read as a stream,

and may end in a range of its documents, ``stories.jsonl[500:1000]``. Blank documents are left out.
In a mix, a text to calibrate on, every item ends in its weight, ``a.jsonl:3,b.jsonl[:500]:1``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, islice

from pgprune.data.known_texts import KNOWN_TEXTS
from pgprune.data.rows import check_length, read_files, read_hub, size_of, text_files
from pgprune.data.sources import Item, items, without_weights
from pgprune.errors import PruningError, first_line

Documents = Sequence[str] | Callable[[], Iterable[str]]
"""Documents in memory, or a function that reads them from the first one."""

IN_MEMORY_BYTES = 64 * 2**20
"""Larger files are streamed."""


@dataclass(frozen=True)
class Part:
    """A text to calibrate on, or one of several in a mix.

    Attributes:
        name: what error messages call it.
        documents: its documents.
        weight: its share of the windows, relative to the other parts' weights.
    """

    name: str
    documents: Documents
    weight: float = 1.0


def calibration_parts(source: str, in_memory_bytes: int = IN_MEMORY_BYTES) -> list[Part]:
    """Opens the text to calibrate on: one part, or those of a mix.

    Args:
        source: as the module describes; ``builtin`` is the training part of the code
            (``builtin:prose`` that of the prose), and a data set without a split is read from
            ``train``. Items without weights follow each other in one part.
        in_memory_bytes: size of files up to which they are read and checked at once.

    Returns:
        The parts; documents are in memory for the built-in text and for small files, else a
        function reads them one by one.

    Raises:
        PruningError: a file or data set is missing, unreadable, binary or empty, a line is not
            JSON with a ``text``, or the weights are wrong.
    """
    parsed = items(source)
    opened = [_open(item, item.domains[0], "train", in_memory_bytes) for item in parsed]
    if len(parsed) > 1 and parsed[0].weight is not None:
        return [
            Part(f"the part {item.text!r} of the calibration text", documents, item.weight or 1.0)
            for item, documents in zip(parsed, opened, strict=True)
        ]
    documents = opened[0]
    if len(opened) > 1 and any(map(callable, opened)):
        documents = partial(_read_all, opened)  # one large text makes the whole text a stream
    elif len(opened) > 1:
        documents = list(_read_all(opened))  # all in memory, so that they are shuffled together
    return [Part(f"the calibration text {source!r}", documents)]


def evaluation_documents(source: str) -> dict[str, Documents]:
    """Opens the texts to evaluate on, a set for each item.

    Args:
        source: as the module describes; ``builtin`` is the two held-out sets ``code`` and
            ``prose``, and a data set without a split is read from ``test``. Weights are refused.

    Returns:
        The documents of each set by its name: the file's name without suffix or the data set's id
        (the whole item where that name is taken).

    Raises:
        PruningError: as ``calibration_parts``.
    """
    sets: dict[str, Documents] = {}
    for item in without_weights(source, "each text to evaluate on is measured by itself"):
        for domain in item.domains:
            name = domain or item.name
            sets[name if name not in sets else item.text] = _open(item, domain, "test")
    return sets


def iterate(documents: Documents) -> Iterator[str]:
    """Iterates over documents from the first one."""
    return iter(documents() if callable(documents) else documents)


def _open(item: Item, domain: str, split: str, in_memory_bytes: int = IN_MEMORY_BYTES) -> Documents:
    """Opens one item and checks that it holds text."""
    in_memory = True
    if domain:
        from pgprune.data.builtin_text import builtin_documents

        part = "train" if split == "train" else "heldout"
        read: Callable[[], Iterable[str]]
        read = partial(builtin_documents, domain, part)  # type: ignore[arg-type]
    elif item.known:
        file = item.known.file(split)
        in_memory = file is not None or split in item.known.joined
        read = partial(read_files, [file]) if file else partial(_read_known, item.place, split)
    elif item.is_local:
        files = text_files(item.path)
        read = partial(read_files, files)
        in_memory = sum(map(size_of, files)) <= in_memory_bytes
    elif item.is_hub_id:
        read = partial(read_hub, item.place, split)
        in_memory = False
    else:
        raise PruningError(f"the text {item.place!r} does not exist")
    read = partial(_documents_in, read, item)
    documents: Documents = list(read()) if in_memory else read
    if next(iterate(documents), None) is None:
        raise PruningError(f"the text {item.text!r} is empty; give one that holds documents")
    return documents


def _documents_in(read: Callable[[], Iterable[str]], item: Item) -> Iterator[str]:
    """Yields the documents of an item's range but blank ones, which count in the range."""
    for text in islice(read(), item.start, item.stop):
        if text and not text.isspace():
            yield check_length(text, f"the text {item.text!r}")


def _read_all(opened: Sequence[Documents]) -> Iterator[str]:
    return chain.from_iterable(map(iterate, opened))


def _read_known(name: str, part: str) -> Iterable[str]:
    """Reads a text with a short name from the hub."""
    text = KNOWN_TEXTS[name]
    place = text.hub[part]
    try:
        if part in text.joined:
            yield _joined(place)
        else:
            yield from read_hub(place, part)
    except PruningError as error:
        raise PruningError(
            f"the text {name!r} is not to be had: {text.lacking(part)}, and the data set {place!r} "
            f"cannot be read ({first_line(error.__cause__ or error)}); mend one of the two, or "
            "give a file of your own"
        ) from error


@cache  # small, and checked before it is used
def _joined(place: str) -> str:
    """Reads a data set whose rows are lines, of which blank ones are stored as nothing."""
    return "".join(line or " \n" for line in read_hub(place, ""))
