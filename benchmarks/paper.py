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
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from paper_cells import TABLES, adapted, resolved, vary
from paper_measure import Work, measure
from paper_tables import draw_figures, fill, markdown

from pgprune.experiments.cells import Cell
from pgprune.experiments.records import missing, read_records
from pgprune.experiments.runner import side_by_side
from pgprune.utils.jsonl import close_line
from pgprune.utils.progress_view import showing


def main(words: Sequence[str] | None = None) -> int:
    """Measures what is missing, or prints the tables."""
    options = _parser().parse_args(words)
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "results.jsonl"
    names = options.only or list(TABLES)
    if options.report:
        records = read_records(path, adapted)
        if options.into:
            options.into.write_text(fill(options.into.read_text(), records))
        else:
            print(markdown(records, names))
        draw_figures(records, options.output)
        return 0
    cells = wanted(names, options.seeds, options.timesteps)
    # A kill may have left half a line, to which the next record would be joined.
    close_line(path)
    lacking = [cell for cell, _ in missing(cells, read_records(path, adapted))]
    print(f"{len(cells)} cells, {len(cells) - len(lacking)} measured before", file=sys.stderr)
    work = [Work(cell, options.assets, options.windows, path) for cell in lacking]
    # One worker stays in this process, where cells share what they load.
    with showing():
        return side_by_side(work, measure, options.workers if options.workers > 1 else 0)


def wanted(
    names: Sequence[str], seeds: int | None = None, timesteps: int | None = None
) -> list[Cell]:
    """Returns the cells of some tables, each once, in the tables' order.

    Args:
        names: of the tables.
        seeds: how many seeds at most.
        timesteps: another number of evaluations in every cell, for a quick look.
    """
    # In the tables' order: a look at a killed command shows whole tables first.
    cells = [cell for name in names for cell in TABLES[name].cells]
    if timesteps:
        cells = [vary(cell, timesteps=timesteps) for cell in cells]
    kept = [resolved(cell) for cell in cells if seeds is None or cell.seed < seeds]
    return list(dict.fromkeys(kept))


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
