"""Reads documents and rows of local files and of data sets of the hub."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pgprune.errors import PruningError, first_line

Row = Mapping[str, Any]
"""One row of a data set, by column."""


def text_files(path: Path) -> list[Path]:
    """Returns a file, or the files of a directory in the order of their names.

    Raises:
        PruningError: there is none of a known format.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _READERS)
    if not files or not all(file.is_file() and file.suffix in _READERS for file in files):
        problem = "does not exist" if not path.exists() else "has none of the known formats"
        raise PruningError(f"the text {str(path)!r} {problem}; give .txt, .jsonl or .parquet files")
    return files


def read_files(files: Iterable[Path]) -> Iterator[str]:
    """Yields the documents of files, one after another.

    Raises:
        PruningError: one cannot be read, is binary, or has a line or row without text.
    """
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


def read_hub(place: str, split: str) -> Iterator[str]:
    """Yields the texts of a data set of the hub, as a stream; raises as ``hub_rows`` does."""
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


_READERS: Mapping[str, Callable[[Path], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
