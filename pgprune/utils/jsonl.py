"""Records as lines of JSON in a file that only grows, each forced to the disk."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgprune.utils.files import append_line, read_text, saving

Record = dict[str, Any]
"""One line."""

_REMEDY = "free some space and repeat the command"


def read_lines(path: Path) -> list[Record]:
    """The records of a file, none if it is not there.

    A line that a power cut left unfinished does not count.
    """
    records: list[Record] = []
    for line in read_text(path).splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def add_line(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a record; numbers that are not finite become null.

    Raises:
        PruningError: the disk is full or refuses.
    """
    with saving(path, _REMEDY):
        append_line(path, json.dumps(finite(record), allow_nan=False))


def close_line(path: Path) -> None:
    """Ends a line that a power cut left unfinished, so that the next one is whole.

    Raises:
        PruningError: the disk is full or refuses.
    """
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with saving(path, _REMEDY), path.open("ab") as file:
            file.write(b"\n")


def finite(value: Any) -> Any:
    """The value with None for every number that is not finite, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
