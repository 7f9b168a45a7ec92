"""Makes the table of docs/real_model.md of finished runs on a real model.

    python benchmarks/real_model.py RUN ... --output DIR           # adds their records to DIR
    python benchmarks/real_model.py --output DIR --report --into docs/real_model.md

A record is one line of DIR/real_model.jsonl: what a run asked for, its costs and its perplexities.
Runs that differ in their seeds only are one row: mean ± standard deviation, and the differences of
log-perplexity seed by seed from the mask where each began to what it ships.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgprune.runs.run import Run
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.jsonl import Record, add_line, read_lines
from pgprune.utils.markdown import check_page, grid, renew_page, spread
from pgprune.utils.options import Config, option

MARKER = "real-model"
FACTS = ("agent", "reward", "loss", "seed", "completed", "mask_evaluations", "tokens", "seconds")


@dataclass(frozen=True)
class RealModelConfig(Config):
    """Records: where they are, and what is made of them."""

    output: str = option("real", "directory of real_model.jsonl", metavar="DIR")
    report: bool = option(False, "add nothing: the table of what is in --output")
    into: tuple[str, ...] | None = option(
        None, "Markdown pages with a place for the table", unset="none", metavar="FILE"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Adds the records of runs, and shows the table of all records."""
    parser = ArgumentParser(__doc__, RealModelConfig)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="directories of finished runs")
    arguments = parser.parse_args(words)
    config = from_arguments(RealModelConfig, arguments)
    pages = [Path(page) for page in config.into or ()]
    for page in pages:
        check_page(page, MARKER)
    records = Path(config.output) / "real_model.jsonl"
    records.parent.mkdir(parents=True, exist_ok=True)
    for run in [] if config.report else arguments.runs:
        add_line(records, record_of(Run.open(Path(run))))
    text = table(read_lines(records))
    for page in pages:
        renew_page(page, MARKER, text)
    if not pages:
        print(text)
    return 0


def record_of(run: Run) -> Record:
    """Reads what the table needs of a finished run, without the paths of this machine."""
    results = json.loads((run.path / "results.json").read_text(encoding="utf-8"))
    sections = run.sections
    return {
        "model": Path(results["model"]).name,
        "granularity": sections["pruning"]["granularity"],
        "budget": sections["pruning"]["budget"],
        # Agents bring no repair of their own, but for the weights of levels.
        "repair": results["repair"]["asked"].replace(
            "auto", "levels" if results["reward"] == "levels" else "none"
        ),
        "asked_evaluations": sections["run"]["total_timesteps"],
        **{name: results[name] for name in (*FACTS, "method_cost") if name in results},
        "prune_rate": results["prune_rate"],
        "parameters": results["parameters"],
        "perplexity": results["perplexity"],
    }


def table(records: Sequence[Record]) -> str:
    """Makes a table of records, (agent, rate and options) by (text), each with its differences."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(_key(record), []).append(record)
    return "\n" + "\n".join(_one(alike) for alike in groups.values())


def _key(record: Record) -> tuple[Any, ...]:
    """Identifies runs that differ in their seeds only."""
    names = ("model", "agent", "granularity", "budget", "repair", "asked_evaluations")
    rate, sets = record["prune_rate"]["requested"], tuple(record["perplexity"]["dense"])
    return (*(record[name] for name in names), rate, record.get("loss"), sets)


def _one(alike: Sequence[Record]) -> str:
    """Makes the heading and the table of runs that differ in their seeds only."""
    first = alike[0]
    sets = list(first["perplexity"]["dense"])
    rows = [["dense", *(f"{first['perplexity']['dense'][name]:.2f}" for name in sets)]]
    for row, title in (("initial", "where it starts"), ("pruned", "what it ships")):
        rows.append([title, *(spread(_values(alike, row, name)) for name in sets)])
    rows.append(["difference in log-perplexity", *(_differences(alike, name) for name in sets)])
    done = ", ".join(f"{record['mask_evaluations']:,}" for record in alike)
    minutes = ", ".join(f"{record['method_cost']['seconds'] / 60:.0f}" for record in alike)
    said = f"**{first['agent']}**, {first['prune_rate']['requested']:.0%} of {first['granularity']}"
    said += f", budget {first['budget']}, repair {first['repair']}, "
    said += f"loss {first.get('loss', 'cross-entropy')}; evaluations {done} of "
    said += f"{first['asked_evaluations']:,}; minutes {minutes}:"
    return f"{said}\n\n{grid(['', *sets], rows)}"


def _values(alike: Sequence[Record], row: str, name: str) -> list[float]:
    return [record["perplexity"][row][name] for record in alike]


def _differences(alike: Sequence[Record], name: str) -> str:
    """Formats the differences from the start to what is shipped: their mean, and each."""
    pairs = zip(_values(alike, "pruned", name), _values(alike, "initial", name), strict=True)
    each = [math.log(shipped / start) for shipped, start in pairs]
    if len(each) == 1:
        return f"{each[0]:.3f}"
    return f"{statistics.fmean(each):.3f} ({', '.join(f'{value:.3f}' for value in each)})"


if __name__ == "__main__":
    run_command(main)
