"""JSON of any origin; and records as its lines in a file that only grows, each line flushed."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgprune.utils.files import append_line, read_text, saving

Record = dict[str, Any]
"""One line."""

_REMEDY = " and repeat the command"


def parse_json(text: str | bytes) -> Any:
    """Parses JSON; bytes are UTF-8, perhaps with a byte order mark.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested deeper than Python's stack allows.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError:  # no ValueError, and no fault of the program
        raise ValueError("it is nested too deeply") from None


def read_lines(path: Path) -> list[Record]:
    """Reads the records of a file; a missing file has none.

    An incomplete line, which a power cut may leave, is skipped.
    """
    return [record for _, record in numbered_lines(path)]


def numbered_lines(path: Path) -> list[tuple[int, Record]]:
    """Reads the records of a file as ``read_lines``, each with its line, counted from 1."""
    records: list[tuple[int, Record]] = []
    text = read_text(path).removeprefix("\ufeff") if path.exists() else ""  # a byte order mark
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record = parse_json(line)
        except ValueError:  # incomplete
            continue
        if isinstance(record, dict):
            records.append((number, record))
    return records


def add_line(path: Path, record: Mapping[str, Any], remedy: str = _REMEDY) -> None:
    """Appends a record as a line of its own; numbers that are not finite become null.

    Raises:
        PruningError: the record cannot be written.
    """
    close_line(path, remedy)
    with saving(path, remedy):
        append_line(path, json.dumps(finite(record), allow_nan=False))  # NaN is not JSON


def close_line(path: Path, remedy: str = _REMEDY) -> None:
    """Ends an incomplete last line, so that the next record starts a new line.

    Raises:
        PruningError: the file cannot be written.
    """
    # A new record would join an incomplete line, and both would be lost.
    if not path.is_file() or not path.stat().st_size:
        return
    with saving(path, remedy), path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def finite(value: Any) -> Any:
    """Replaces numbers that are not finite, which JSON cannot hold, by None."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
