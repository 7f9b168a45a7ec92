"""Reads documents and rows of local files and of data sets of the hub."""

import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pgprune.data.sources import text_format
from pgprune.errors import PruningError, first_line, printable
from pgprune.utils.files import user_path
from pgprune.utils.jsonl import parse_json

Row = Mapping[str, Any]
"""One row of a data set, by column."""

LONGEST = 2**24
"""Characters of a document: a tokenizer takes some 130 bytes of memory for each of them."""

_COMPRESSION = 4  # bytes of text in a byte of .gz
_GIVE = "give .txt, .jsonl or .parquet files, the first two perhaps with .gz"
_LONGEST_BYTES = 4 * LONGEST  # UTF-8 takes up to four for a character
BROKEN = (OSError, EOFError, zlib.error)
"""What reading raises for files that are gone, and for compressed ones that are cut or damaged."""


def text_files(path: Path) -> list[Path]:
    """Returns a file, or the files of a directory in the order of their names.

    Raises:
        PruningError: there is none of a known format.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if text_format(file))
    for file in filter(text_format, files):
        if os.path.lexists(file) and not file.is_file():
            raise PruningError(
                f"the text {str(file)!r} is a directory, a pipe, a device or a link to nothing; "
                "put a file in its place, or give another"
            )
    if not files or not all(file.is_file() and text_format(file) for file in files):
        problem = "does not exist" if not path.exists() else "has none of the known formats"
        raise PruningError(f"the text {str(path)!r} {problem}; {_GIVE}")
    return files


def size_of(file: Path) -> int:
    """Returns the bytes of a file; of a compressed one, about those of its text."""
    return file.stat().st_size * (_COMPRESSION if _is_compressed(file) else 1)


def read_files(files: Iterable[Path]) -> Iterator[str]:
    """Yields the documents of files, one after another.

    Raises:
        PruningError: one cannot be read, is binary, or has a line or row without text.
    """
    for file in files:
        try:
            yield from _READERS[text_format(file)](file)
        except BROKEN as error:
            raise PruningError(
                f"the text {str(file)!r} cannot be read: {first_line(error)}"
            ) from None


def check_length(text: str, where: str) -> str:
    """Returns a document that a tokenizer can take in one piece.

    Raises:
        PruningError: it is longer than ``LONGEST``.
    """
    if len(text) > LONGEST:
        raise PruningError(
            f"{where} has a document of more than {LONGEST:,} characters, for which a tokenizer "
            "needs gigabytes; split it into documents, such as lines of a .jsonl file"
        )
    return text


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if _is_compressed(path) else path.open("rb")  # type: ignore[return-value]


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _read_txt(path: Path) -> Iterator[str]:
    with _opened(path) as file:
        content = file.read(_LONGEST_BYTES + 1)
    try:
        # A character that the limit has cut is no fault of the file.
        text = content[:_LONGEST_BYTES].decode("utf-8-sig", _cut(content))
    except UnicodeDecodeError:
        text = "\0"  # reported as binary below
    if "\0" in text:
        raise PruningError(f"the text {str(path)!r} is binary; give text in UTF-8")
    # As Python reads text: each of the three line breaks is one.
    yield text.replace("\r\n", "\n").replace("\r", "\n")


def _cut(content: bytes) -> str:
    return "ignore" if len(content) > _LONGEST_BYTES else "strict"


def jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields the line number and the value of each line of a file of JSON values.

    Raises:
        PruningError: a line is not JSON.
    """
    with _opened(path) as file:
        lines = iter(lambda: file.readline(_LONGEST_BYTES + 1), b"")
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            if len(line) > _LONGEST_BYTES:
                raise PruningError(
                    f"line {number} of {str(path)!r} is longer than {_LONGEST_BYTES:,} bytes; "
                    "split it into several"
                )
            try:
                yield number, parse_json(line)
            except ValueError as error:  # not UTF-8 or not JSON
                raise PruningError(
                    f"line {number} of {str(path)!r} is not JSON in UTF-8: {first_line(error)}"
                ) from None


def _read_jsonl(path: Path) -> Iterator[str]:
    for number, row in jsonl_rows(path):
        has_text = isinstance(row, dict) and "text" in row
        text = "" if has_text and row["text"] is None else has_text and row["text"]
        if not isinstance(text, str):
            raise PruningError(
                f"line {number} of {str(path)!r} has no text; each line must be a JSON object "
                "with a string in its field `text`"
            )
        yield text.encode("utf-8", "replace").decode()  # JSON may escape half a character


Choice = Callable[[Sequence[str], Sequence[str]], Sequence[str]]


def parquet_rows(path: Path, choose: Choice = lambda strings, _: strings) -> Iterator[Row]:
    """Yields the rows of a parquet file.

    Args:
        path: the file.
        choose: picks columns to read of those that hold strings, which it is given beside a
            description of all.

    Raises:
        PruningError: the file cannot be read.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            fields = list(file.schema_arrow)
            strings = [field.name for field in fields if _holds_text(field.type)]
            columns = choose(strings, [f"{field.name} ({field.type})" for field in fields])
            _check_once(columns, [field.name for field in fields], path)
            # Rows of a few megabytes at a time.
            for batch in file.iter_batches(batch_size=256, columns=columns):
                yield from batch.to_pylist()
    except (OSError, ValueError, LookupError, pa.ArrowException) as error:
        if isinstance(error, PruningError):
            raise
        raise PruningError(
            f"the parquet file {str(path)!r} cannot be read: {first_line(error)}"
        ) from None


def _holds_text(kind: Any) -> bool:
    """Whether the type of a column is one of strings, or of nothing but null."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return str(kind) in ("string", "large_string", "string_view", "null")


def _check_once(columns: Iterable[str], names: Sequence[str], path: Path) -> None:
    """Refuses columns that share a name, of which a row could hold one only."""
    if twice := [name for name in columns if names.count(name) > 1]:
        raise PruningError(
            f"the parquet file {str(path)!r} has several columns named {printable(twice[0])!r}; "
            "rename all but one"
        )


def _read_parquet(path: Path) -> Iterator[str]:
    column = ""

    def choose(strings: Sequence[str], described: Sequence[str]) -> Sequence[str]:
        nonlocal column
        column = _column(strings, described, str(path))
        return [column]

    return (row[column] or "" for row in parquet_rows(path, choose))


def hub_rows(place: str, default_split: str = "train") -> Iterator[Row]:
    """Yields the rows of a data set of the hub, as a stream.

    Args:
        place: the data set, as name:config:split.
        default_split: the split if the place names none.

    Raises:
        PruningError: the data set cannot be read.
    """
    from datasets import load_dataset, packaged_modules

    builders = getattr(packaged_modules, "_PACKAGED_DATASETS_MODULES", ())
    name, config, split = (*place.split(":"), "", "")[:3]  # missing ones are empty
    # The package would take these for files below the current directory.
    if name in builders or user_path(name).exists():
        raise PruningError(
            f"{place!r} is no data set of the hub: {name!r} names files of this machine; give "
            "their path, which ends in .txt, .jsonl or .parquet"
        )
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
    for number, row in enumerate(rows, start=1):
        if column is None:
            strings = [name for name, value in row.items() if isinstance(value, str)]
            if not strings and None in row.values():
                yield ""  # a later row shows which column holds strings
                continue
            column = _column(strings, list(row), where)
        text = row.get(column)
        if not isinstance(text, str | None):
            raise PruningError(
                f"row {number} of {where!r} has no text in its column {column!r}, but "
                f"{type(text).__name__}; give a column of strings"
            )
        yield text or ""


def _column(strings: Sequence[str], columns: Sequence[str], where: str) -> str:
    """Chooses the column of texts among those that hold strings.

    Raises:
        PruningError: none is named ``text``, and there is not exactly one.
    """
    if "text" in strings or len(strings) == 1:
        return "text" if "text" in strings else strings[0]
    raise PruningError(
        f"{where!r} has no column `text` of strings and not exactly one column of strings; its "
        f"columns are {printable(', '.join(columns))}"
    )


_READERS: Mapping[str, Callable[[Path], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".txt.gz": _read_txt,
    ".jsonl.gz": _read_jsonl,
}
