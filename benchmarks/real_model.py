"""Makes the table of docs/real_model.md of finished runs on a real model.

    python benchmarks/real_model.py RUN ... --output DIR           # adds their records to DIR
    python benchmarks/real_model.py --output DIR --report --into docs/real_model.md
    python benchmarks/real_model.py --output DIR --report --plot FILE.png --rivals rivals.jsonl

A record is one line of DIR/real_model.jsonl: what a run asked for, its costs and its perplexities.
Runs that differ in their seeds only are one row: mean ± standard deviation, and the differences of
log-perplexity seed by seed from the mask where each began to what it ships. The figure has the
last row of each agent and number of parameters, and the best row of each rival (by its repairs and
the text for its weights), which ``pgprune compare`` has measured.
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
from pgprune.utils.figures import legend, save_figure
from pgprune.utils.jsonl import Record, add_line, read_lines
from pgprune.utils.markdown import check_page, grid, renew_page, spread
from pgprune.utils.options import Config, option

MARKER = "real-model"
_TICKS = (1, 1.25, 1.5, 2, 2.5, 3)
FACTS = ("agent", "reward", "loss", "seed", "completed", "mask_evaluations", "tokens", "seconds")


@dataclass(frozen=True)
class RealModelConfig(Config):
    """Records: where they are, and what is made of them."""

    output: str = option("real", "directory of real_model.jsonl", metavar="DIR")
    report: bool = option(False, "add nothing: the table of what is in --output")
    into: tuple[str, ...] | None = option(
        None, "Markdown pages with a place for the table", unset="none", metavar="FILE"
    )
    plot: str | None = option(
        None, "PNG of perplexities by parameters", unset="none", metavar="FILE"
    )
    rivals: str | None = option(
        None, "records of pgprune compare, for the figure", unset="none", metavar="FILE"
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
    found = read_lines(records)
    if config.plot is not None:
        rivals = read_lines(Path(config.rivals)) if config.rivals else []
        plot(Path(config.plot), found, rivals)
    text = table(found)
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


def plot(path: Path, records: Sequence[Record], rivals: Sequence[Record]) -> None:
    """Draws how many times the dense perplexity is left at which size, a panel for each text."""
    names = [name for name in records[0]["perplexity"]["dense"] if "@" not in name]
    whole = records[0]["parameters"]["dense"] / 1e6
    curves = {f"{agent}, as shipped": points for agent, points in _agents(records).items()}
    curves |= {method: points for method, points in _rivals(rivals).items()}

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for panel, name in zip(panels, names, strict=True):
            panel.plot([whole], [1], "k*", markersize=9, label="dense")
            for number, (label, points) in enumerate(curves.items()):
                look = {"marker": "osD^vPX*<>"[number % 10], "markersize": 5}
                line = sorted((kept / 1e6, values[name]) for kept, values in points)
                panel.plot(*zip(*line, strict=True), label=label, **look)
            panel.set(title=name, xlabel="parameters (millions)", yscale="log")
            panel.set_ylabel("perplexity over the dense model's")
            panel.invert_xaxis()
            panel.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
            panel.minorticks_off()
        legend(figure, panels, fontsize=9)

    save_figure(path, (4.2 * len(names) + 2.2, 3.6), draw)


Points = list[tuple[int, dict[str, float]]]
"""Parameters, and perplexities over those of the dense model, by text."""


def _agents(records: Sequence[Record]) -> dict[str, Points]:
    """Returns what agents ship: means over seeds of the last row of each number of parameters."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(_key(record), []).append(record)
    last = {}
    for alike in groups.values():
        share = alike[0]["parameters"]["pruned"] / alike[0]["parameters"]["dense"]
        last[alike[0]["agent"], round(share, 2)] = alike
    found: dict[str, Points] = {}
    for (agent, _), alike in last.items():
        dense = alike[0]["perplexity"]["dense"]
        means = {n: statistics.fmean(_values(alike, "pruned", n)) / dense[n] for n in dense}
        found.setdefault(agent, []).append((alike[0]["parameters"]["pruned"], means))
    return found


def _rivals(records: Sequence[Record]) -> dict[str, Points]:
    """Returns the best row of each method at each rate, by the mean of log-perplexities."""
    best: dict[tuple[str, float], Record] = {}
    for record in records:
        key = record["method"].partition(":")[0], record["rate"]
        if key not in best or _mean_log(record) < _mean_log(best[key]):
            best[key] = record
    found: dict[str, Points] = {}
    for (method, _), record in best.items():
        points = found.setdefault(method, [])
        ratios = {
            name: value / record["dense"][name] for name, value in record["perplexity"].items()
        }
        points.append((record["parameters"]["pruned"], ratios))
    return found


def _mean_log(record: Record) -> float:
    return statistics.fmean(map(math.log, record["perplexity"].values()))


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
