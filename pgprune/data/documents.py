"""Documents of text sources: the built-in text, data sets of the hub, local files.

A source is one item or several joined by commas. An item is

* ``builtin``: the standard library's sources and Python's language reference; ``builtin:code`` and
  ``builtin:prose`` are one of them;
* a local ``.txt`` (one document), ``.jsonl`` (one document a line, field ``text``) or ``.parquet``
  file (one document a row), or a directory of such files;
* a data set of the hub with config and split, ``allenai/c4:en:train``, read as a stream,

and may end in a range of its documents, ``stories.jsonl[500:1000]``. Blank documents are left out.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pgprune.data.sources import Item, items
from pgprune.errors import PruningError, first_line

Documents = Sequence[str] | Callable[[], Iterable[str]]
"""Documents in memory, or a function that reads them from the first one."""

Row = Mapping[str, Any]
"""One row of a data set, by column."""

IN_MEMORY_BYTES = 64 * 2**20
"""Larger files are streamed."""


def calibration_documents(source: str, in_memory_bytes: int = IN_MEMORY_BYTES) -> Documents:
    """Opens the text to calibrate on; several items follow each other.

    Args:
        source: as the module describes; ``builtin`` is the training part of the code
            (``builtin:prose`` that of the prose), and a data set without a split is read from
            ``train``.
        in_memory_bytes: size of files up to which they are read and checked at once.

    Returns:
        The documents in memory for the built-in text and for small files, else a function that
        reads them one by one.

    Raises:
        PruningError: a file or data set is missing, unreadable, binary or empty, or a line is not
            JSON with a ``text``.
    """
    opened = [_open(item, item.domains[0], "train", in_memory_bytes) for item in items(source)]
    if len(opened) == 1:
        return opened[0]
    if any(callable(documents) for documents in opened):
        return partial(_read_all, opened)  # one large text makes the whole text a stream
    return list(_read_all(opened))  # all in memory, so that they are shuffled together


def evaluation_documents(source: str) -> dict[str, Documents]:
    """Opens the texts to evaluate on, a set for each item.

    Args:
        source: as the module describes; ``builtin`` is the two held-out sets ``code`` and
            ``prose``, and a data set without a split is read from ``test``.

    Returns:
        The documents of each set by its name: the file's name without suffix or the data set's id
        (the whole item where that name is taken).

    Raises:
        PruningError: as ``calibration_documents``.
    """
    sets: dict[str, Documents] = {}
    for item in items(source):
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
    elif item.is_local:
        files = _files(item.path)
        read = partial(_read_files, files)
        in_memory = sum(file.stat().st_size for file in files) <= in_memory_bytes
    elif item.is_hub_id:
        read = partial(_read_hub, item.place, split)
        in_memory = False
    else:
        raise PruningError(f"the text {item.place!r} does not exist")
    read = partial(_documents_in, read, item.start, item.stop)
    documents: Documents = list(read()) if in_memory else read
    if next(iterate(documents), None) is None:
        raise PruningError(f"the text {item.text!r} is empty; give one that holds documents")
    return documents


def _documents_in(read: Callable[[], Iterable[str]], start: int, stop: int | None) -> Iterator[str]:
    """Yields the documents of a range that are not blank; blank ones count in the range."""
    return (text for text in islice(read(), start, stop) if text and not text.isspace())


def _read_all(opened: Sequence[Documents]) -> Iterator[str]:
    return chain.from_iterable(map(iterate, opened))


def _files(path: Path) -> list[Path]:
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _READERS)
    if not files or not all(file.is_file() and file.suffix in _READERS for file in files):
        problem = "does not exist" if not path.exists() else "has none of the known formats"
        raise PruningError(f"the text {str(path)!r} {problem}; give .txt, .jsonl or .parquet files")
    return files


def _read_files(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        try:
            yield from _READERS[file.suffix](file)
        except OSError as error:
            raise PruningError(
                f"the text {str(file)!r} cannot be read: {first_line(error)}"
            ) from None


def _read_txt(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"  # reported as binary below
    if "\0" in text:
        raise PruningError(f"the text {str(path)!r} is binary; give text in UTF-8")
    yield text


def jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields the line number and the value of each line of a file of JSON values.

    Raises:
        PruningError: a line is not JSON.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                yield number, json.loads(line.decode("utf-8-sig"))
            except ValueError as error:  # not UTF-8 or not JSON
                raise PruningError(
                    f"line {number} of {str(path)!r} is not JSON in UTF-8: {first_line(error)}"
                ) from None


def _read_jsonl(path: Path) -> Iterator[str]:
    for number, row in jsonl_rows(path):
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise PruningError(
                f"line {number} of {str(path)!r} has no text; each line must be a JSON object "
                "with a string in its field `text`"
            )
        yield text.encode("utf-8", "replace").decode()  # JSON may escape half a character


def parquet_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a parquet file.

    Raises:
        PruningError: the file cannot be read.
    """
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):  # rows of a few megabytes at a time
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise PruningError(
            f"the parquet file {str(path)!r} cannot be read: {first_line(error)}"
        ) from None


def _read_parquet(path: Path) -> Iterator[str]:
    return _texts(parquet_rows(path), str(path))


_READERS: Mapping[str, Callable[[Path], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def hub_rows(place: str, default_split: str = "train") -> Iterator[Row]:
    """Yields the rows of a data set of the hub, as a stream.

    Args:
        place: the data set, as name:config:split.
        default_split: the split if the place names none.

    Raises:
        PruningError: the data set cannot be read.
    """
    from datasets import load_dataset

    name, config, split = (*place.split(":"), "", "")[:3]  # missing ones are empty
    try:
        yield from load_dataset(name, config or None, split=split or default_split, streaming=True)
    except Exception as error:  # datasets, httpx and fsspec share no base class
        raise PruningError(
            f"the data set {place!r} cannot be read ({first_line(error)}); check its name, config "
            "and split (name:config:split) and the network, or give local files"
        ) from error


def _read_hub(place: str, split: str) -> Iterator[str]:
    return _texts(hub_rows(place, split), place)


def _texts(rows: Iterable[Row], where: str) -> Iterator[str]:
    """Yields the column ``text`` of rows, or their only column of strings; null is blank."""
    column = None
    for row in rows:
        if column is None:
            strings = [name for name, value in row.items() if isinstance(value, str)]
            column = "text" if "text" in row else strings[0] if len(strings) == 1 else None
            if column is None:
                raise PruningError(
                    f"{where!r} has no column `text` and not exactly one column of strings; its "
                    f"columns are {', '.join(row)}"
                )
        yield row[column] or ""
