"""The records of a comparison: the lines of ``DIR/comparison.jsonl``, each forced to the disk.

A cell has one line for its mask as the method leaves it, which says repair ``none``, or ``own``
where the method brings weights, and one line for each repair of the same mask. What has a line is
not measured again, also where the line says by ``error`` why it could not be measured.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pgprune.experiments.method_cells import Cell
from pgprune.utils.jsonl import Record, add_line, read_lines

RECORDS = "comparison.jsonl"


def read_records(output: Path) -> list[Record]:
    """The records of a comparison, the last one of each cell and repair.

    A line that a power cut left unfinished does not count.

    Args:
        output: the comparison's directory.
    """
    found = dict[Any, Record]()
    for record in read_lines(output / RECORDS):
        try:
            found[record_key(record), repair_of(record)] = record
        except KeyError:
            continue
    return list(found.values())


def add_record(output: Path, record: Record) -> None:
    """Adds a line; numbers that are not finite become null.

    Raises:
        PruningError: the disk is full or refuses.
    """
    add_line(output / RECORDS, record)


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
