"""The records of a comparison: the lines of ``DIR/comparison.jsonl``, each forced to the disk.

A cell has one line for its mask as the method leaves it, which says repair ``none``, or ``own``
where the method brings weights, and one line for each repair of the same mask. What has a line is
not measured again, also where the line says why it could not be measured.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pgprune.comparison import Cell
from pgprune.files import append_line, saving
from pgprune.run import finite

Record = dict[str, Any]
"""One line: a cell under one repair, or the ``error`` that kept it from being measured."""

RECORDS = "comparison.jsonl"


def read_records(output: Path) -> list[Record]:
    """The records of a comparison, the last one of each cell and repair.

    A line that a power cut left unfinished does not count.

    Args:
        output: the comparison's directory.
    """
    path, found = output / RECORDS, dict[Any, Record]()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
            found[record_key(record), repair_of(record)] = record
        except (ValueError, KeyError, TypeError):
            continue
    return list(found.values())


def add_record(output: Path, record: Record) -> None:
    """Adds a line; numbers that are not finite become null.

    Raises:
        PruningError: the disk is full or refuses.
    """
    with saving(output / RECORDS, "free some space and repeat the command"):
        append_line(output / RECORDS, json.dumps(finite(record), allow_nan=False))


def close_line(output: Path) -> None:
    """Ends a line that a power cut left unfinished, so that the next one is whole."""
    path = output / RECORDS
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with saving(path, "free some space and repeat the command"), path.open("ab") as file:
            file.write(b"\n")


def record_key(record: Mapping[str, Any]) -> tuple[str, str, float, int]:
    """The cell that a record is of, as ``Cell.key``."""
    return record["model"], record["method"], record["rate"], record["seed"]


def repair_of(record: Mapping[str, Any]) -> str:
    """The repair that was asked for: ``none`` for the mask as the method leaves it."""
    return "none" if record["repair"] == "own" else record["repair"]


def missing(
    cells: Iterable[Cell], records: Iterable[Record], repairs: Sequence[str], retry: bool = False
) -> list[tuple[Cell, list[str]]]:
    """What is still to be measured.

    Args:
        cells: what is wanted.
        records: what there is.
        repairs: wanted for each cell, besides none.
        retry: whether failures count as missing.

    Returns:
        Cells, each with the repairs that it lacks, ``none`` first.
    """
    wanted = ["none", *(how for how in repairs if how != "none")]
    done: dict[Any, set[str]] = defaultdict(set)
    for record in records:
        if retry and "error" in record:
            continue
        done[record_key(record)].add(repair_of(record))
        if repair_of(record) == "none" and record.get("mask") is None:
            done[record_key(record)].update(wanted)  # nothing to repair
    lacking = [(cell, [how for how in wanted if how not in done[cell.key]]) for cell in cells]
    return [(cell, repairs) for cell, repairs in lacking if repairs]
