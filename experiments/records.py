"""The records of experiments: lines of JSON, one for each cell and repair, that are only added.

A record says which cell it is of by ``method``, ``task`` and ``seed``, and by ``repair`` what was
done with the run's mask: ``none`` leaves it as it is, ``own`` says that the method brings weights
or biases. A cell that could not be measured has a record, too, which says why by ``error``.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pgprune.experiments.cells import RANDOM, Cell, Key
from pgprune.utils.jsonl import Record, numbered_lines, read_lines


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    """Whether a value is a finite number, and none of hundreds of digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _MOST


def _are_numbers(value: object) -> bool:
    """Whether a value holds positive numbers by name; null stands for one that is not finite."""
    return isinstance(value, dict) and all(
        one is None or type(one) in (int, float) and 0 < one < sys.float_info.max
        for one in value.values()
    )


_FIELDS: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(["method", "task", "model", "repair", "needs", "granularity"], _is_text),
    **dict.fromkeys(["error", "run"], _is_text),
    **dict.fromkeys(["seed", "rate"], _is_number),
    **dict.fromkeys(["perplexity", "dense", "parameters"], _are_numbers),
    "hyperparameters": lambda value: isinstance(value, dict),
    "curve": lambda value: isinstance(value, list),
}
_QUOTED = 60  # characters of an odd value
_MOST = 1e18


def adapted(record: Record) -> Record:
    """Returns a record in today's shape.

    Older comparisons lack ``task``; older benchmarks of agents have ``agent`` in place of
    ``method`` and no ``model``, ``rate`` or ``repair``.

    Raises:
        KeyError: it is no record of a cell.
    """
    if "agent" in record:
        # "random" is a method of comparisons today, so the agent has another name.
        method = RANDOM if record["agent"] == "random" else record["agent"]
        model, rate = record["task"].split(":")[:2]
        start = {"method": method, "model": model, "rate": float(rate), "repair": "none"}
        return start | {name: value for name, value in record.items() if name != "agent"}
    if "task" not in record:
        return {"task": f"{record['model']}:{record['rate']:g}", **record}
    return record


def read_records(path: Path, adapt: Callable[[Record], Record] = adapted) -> list[Record]:
    """Reads records, the last one of each cell and repair.

    A line that a power cut left unfinished, or that is no record of a cell, does not count.

    Args:
        path: the file; without it there are no records.
        adapt: brings a record into today's shape.
    """
    # A retried cell has two records, of which the later one counts, in the earlier one's place.
    found: dict[tuple[Key, str], Record] = {}
    for line in read_lines(path):
        try:
            record = adapt(line)
            found[key_of(record), repair_of(record)] = record
        except (LookupError, TypeError, ValueError, AttributeError):
            continue
    return list(found.values())


def odd_line(path: Path, lacking: object = None) -> str:
    """Finds the first record with a field that no table can show.

    Args:
        path: the file.
        lacking: a field that a table has looked for in vain.

    Returns:
        Its line, the field and its value; or an empty text, if nothing is odd by itself.
    """
    lines = numbered_lines(path)
    for number, record in lines:
        for name, fits in _FIELDS.items():
            if name in record and not fits(record[name]):
                return f"line {number}, {name}: {ascii(record[name])[:_QUOTED]}"
    if any(lacking in record for _, record in lines):  # else it is of something within a record
        for number, record in lines:
            if not {lacking, "error"} & record.keys():
                return f"line {number}, {lacking}: missing"
    return ""


def key_of(record: Record) -> Key:
    """Returns the key of the cell that a record is of, as ``Cell.key``."""
    return record["method"], record["task"], record["seed"]


def repair_of(record: Record) -> str:
    """Returns the repair that was asked for: ``none`` for the mask as the method leaves it."""
    repair: str = record.get("repair", "none")
    return "none" if repair == "own" else repair


def missing(
    cells: Iterable[Cell],
    records: Iterable[Record],
    repairs: Sequence[str] = (),
    retry: bool = False,
) -> list[tuple[Cell, list[str]]]:
    """Returns what is still to be measured.

    Args:
        cells: all cells.
        records: what was measured, failures included.
        repairs: to measure beside each mask as its method leaves it.
        retry: whether failures count as not measured.

    Returns:
        Cells, each with the repairs that it lacks, ``none`` among them.
    """
    wanted, done = ["none", *repairs], defaultdict[Key, set[str]](set)
    for record in records:
        if retry and "error" in record:
            continue
        done[key_of(record)].add(repair_of(record))
        if repair_of(record) == "none" and record.get("mask") is None:
            done[key_of(record)].update(wanted)  # a failure or a method without masks: no repairs
    lacking = [(cell, [how for how in wanted if how not in done[cell.key]]) for cell in cells]
    return [(cell, repairs) for cell, repairs in lacking if repairs]
