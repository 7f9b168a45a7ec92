"""Measures the tables of docs/results.md: one command, resumable, an afternoon on 2 cores.

    python benchmarks/paper.py --assets ASSETS --output DIR
    python benchmarks/paper.py --assets ASSETS --output DIR --only main reproduction --seeds 1
    python benchmarks/paper.py --output DIR --report
    python benchmarks/paper.py --output DIR --report --into docs/results.md

ASSETS holds models/stories260K, models/babyllama-361 and text/tinystories; the tables of the
built-in model need nothing. Every measured cell is one line of DIR/results.jsonl; what is there is
not measured again, so the command can be killed and repeated at any time.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from cells import TABLES, Cell

Record = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Measures what is missing, or prints the tables."""
    options = _parser().parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.jsonl"
    names = options.only or list(TABLES)
    if options.report:
        return _report(read_records(path), names, options)
    cells = wanted(names, options.seeds, options.timesteps)
    return run(cells, path, options.assets, options.workers, options.windows)


def wanted(names: list[str], seeds: int | None = None, timesteps: int | None = None) -> list[Cell]:
    """The cells of some tables, each once, in the tables' order.

    Args:
        names: of the tables.
        seeds: how many seeds at most.
        timesteps: another number of evaluations in every cell, for a quick look.
    """
    cells = [cell for name in names for cell in TABLES[name].cells]
    if timesteps:
        cells = [Cell(**asdict(cell) | {"timesteps": timesteps}) for cell in cells]
    kept = [cell.resolved() for cell in cells if seeds is None or cell.seed < seeds]
    return list(dict.fromkeys(kept))


def run(cells: list[Cell], path: Path, assets: Path, workers: int = 2, windows: int = 400) -> int:
    """Measures the cells that the file does not have, and appends each as one line.

    Args:
        cells: what to measure.
        path: the JSON lines.
        assets: folder with ``models`` and ``text``.
        workers: processes of one thread each; 1 stays in this process.
        windows: evaluation windows of each text.

    Returns:
        The number of cells that failed.
    """
    done = {Cell(**record["cell"]) for record in read_records(path)}
    missing = [cell for cell in cells if cell not in done]
    print(f"{len(cells)} cells, {len(cells) - len(missing)} measured before", file=sys.stderr)
    started = time.perf_counter()
    failures = 0
    work = partial(_measure, assets=assets, windows=windows)
    for count, record in enumerate(_map(work, missing, workers), start=1):
        if "error" in record:
            failures += 1
        else:
            append_record(path, record)
        seconds = time.perf_counter() - started
        left = seconds / count * (len(missing) - count) / 60
        print(f"{count}/{len(missing)}, {left:.0f} min left: {_line(record)}", file=sys.stderr)
    return failures


def read_records(path: Path) -> list[Record]:
    """The records of a file; a line that a crash left unfinished does not count."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def append_record(path: Path, record: Record) -> None:
    """Appends one line and forces it to the disk; an unfinished line before it is closed."""
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        torn = end > 0 and file.read(1) != b"\n"
        file.write(b"\n" * torn + json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _report(records: list[Record], names: list[str], options: argparse.Namespace) -> int:
    from report import figures, fill, markdown

    if options.into:
        options.into.write_text(fill(options.into.read_text(), records))
    else:
        print(markdown(records, names))
    figures(records, options.output)
    return 0


def _map(work: partial[Record], cells: list[Cell], workers: int) -> Iterator[Record]:
    if workers == 1:
        yield from map(work, cells)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_one_thread) as pool:
        yield from pool.imap_unordered(work, cells)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _measure(cell: Cell, assets: Path, windows: int) -> Record:
    from measure import measure

    _one_thread()
    try:
        return measure(cell, assets, windows)
    except Exception as error:  # one cell must not end an afternoon; it is reported and not stored
        return {"cell": asdict(cell), "error": f"{type(error).__name__}: {error}"}


def _line(record: Record) -> str:
    plain = asdict(Cell())
    cell = " ".join(
        f"{name}={value}" for name, value in record["cell"].items() if value != plain[name]
    )
    if "masks" not in record:
        return f"{cell} {record.get('error', '')}"
    learned = record["masks"]["learned"]["perplexity"]
    shown = " ".join(f"{name} {value:.2f}" for name, value in learned.items())
    return f"{cell} -> {shown} in {record['seconds']:.0f} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--assets", type=Path, default=Path(os.environ.get("PGPRUNE_ASSETS", "assets")))
    add("--output", type=Path, required=True, help="directory of results.jsonl and figures")
    add("--only", nargs="+", choices=list(TABLES), metavar="TABLE", help=", ".join(TABLES))
    add("--workers", type=int, default=2, help="processes of one thread (default 2)")
    add("--seeds", type=int, help="at most that many seeds")
    add("--timesteps", type=int, help="evaluations of every cell, for a quick look")
    add("--windows", type=int, default=400, help="evaluation windows (default 400)")
    add("--report", action="store_true", help="print the tables as Markdown, draw the figures")
    add("--into", type=Path, metavar="PAGE", help="with --report: renew the tables of this page")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the workers end too
    sys.exit(main())
