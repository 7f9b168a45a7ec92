r"""Compares a sweep with separate runs at the same rates, and makes the table of docs/sweep.md.

    python benchmarks/sweep.py --output DIR                         # the built-in model: core-hours
    python benchmarks/sweep.py --output DIR --model smollm2 \
        --options "--calibration c4 --evaluation wikitext2 c4 --evaluation-windows 64"
    python benchmarks/sweep.py RUN SWEEP ... --output DIR           # adds finished ones to DIR
    python benchmarks/sweep.py --output DIR --report --into docs/sweep.md --figure FILE

Each seed has a run at each rate, a sweep over the rates and a nested one, by the recommended agent.
What DIR holds is not done again, and what was killed is resumed. A record is one line of
DIR/sweep.jsonl: a model of a run, or what the rates of a sweep share (rate null).
"""

import json
import math
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pgprune.runs.run import Run
from pgprune.runs.sweep import Sweep, is_sweep
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.figures import BEST, GREY, INITIAL, LEARNED, legend, plain_ticks, save_figure
from pgprune.utils.jsonl import Record, add_line, read_lines
from pgprune.utils.markdown import check_page, grid, renew_page
from pgprune.utils.options import Config, option

MARKER = "sweep"
KINDS = ("separate", "sweep", "nested")
TITLES = {"separate": "separate runs", "sweep": "sweep", "nested": "nested sweep"}
BARS = {"sweep": 0.01, "nested": 0.03}
"""Of the difference to separate runs: the share of their log-perplexity that it is to be within."""
SCRIPT = Path(__file__).parents[1] / "scripts" / "train_agent.py"


@dataclass(frozen=True)
class SweepBenchmarkConfig(Config):
    """Comparison: what is measured, and what is made of it."""

    model: str = option("builtin", "model to prune")
    rates: tuple[float, ...] = option((0.1, 0.2, 0.3, 0.4, 0.5), "prune rates", above=0, below=1)
    seeds: tuple[int, ...] = option((0, 1, 2), "seeds", minimum=0)
    only: tuple[str, ...] = option(KINDS, "what to measure", choices=list(KINDS))
    options: str = option("--evaluation-windows 200", "of pgprune train, in one text")
    output: str = option("sweep", "directory of all runs and of sweep.jsonl", metavar="DIR")
    report: bool = option(False, "measure nothing: the table of what is in --output")
    into: tuple[str, ...] | None = option(
        None, "Markdown pages with a place for the table", unset="none", metavar="FILE"
    )
    figure: str | None = option(None, "picture of the curves", unset="none", metavar="FILE")


def main(words: Sequence[str] | None = None) -> int:
    """Measures what is missing, and shows the table of all records."""
    parser = ArgumentParser(__doc__, SweepBenchmarkConfig)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="finished runs and sweeps to add")
    arguments = parser.parse_args(words)
    config = from_arguments(SweepBenchmarkConfig, arguments)
    pages = [Path(page) for page in config.into or ()]
    for page in pages:
        check_page(page, MARKER)
    path = Path(config.output) / "sweep.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    for run in arguments.runs:
        add(path, Path(run))
    if not config.report and not arguments.runs:
        for seed, kind in product(config.seeds, config.only):
            measure(kind, seed, config, path)
    records = read_lines(path)
    text = table(records)
    for page in pages:
        renew_page(page, MARKER, text)
    if not pages:
        print(text)
    if config.figure is not None:
        draw(records, Path(config.figure))
    return 0


def measure(kind: str, seed: int, config: SweepBenchmarkConfig, path: Path) -> None:
    """Runs what is missing of a kind and a seed, and adds its records."""
    name = Path(config.model).name
    shared = ["--agent", "auto", "--model", config.model, "--seed", seed]
    shared += shlex.split(config.options)
    if kind == "separate":
        for rate in config.rates:
            output = path.parent / f"{name}-separate-{rate}-seed{seed}"
            _train(output, *shared, "--prune-rate", rate)
            add(path, output)
        return
    output = path.parent / f"{name}-{kind}-seed{seed}"
    nested = ["--nested"] if kind == "nested" else []
    _train(output, *shared, *nested, "--prune-rates", *config.rates)
    add(path, output)


def add(path: Path, source: Path) -> None:
    """Adds the records of a finished run, or of a sweep, unless they are there."""
    known = [_key(record) for record in read_lines(path)]
    for record in _records(source):
        if _key(record) not in known:
            add_line(path, record)


def _key(record: Record) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("kind", "model", "seed", "rate"))


def _records(source: Path) -> list[Record]:
    """Makes the records of a finished run, or of what is finished of a sweep."""
    if not is_sweep(source):
        return [_record("separate", Run.open(source))]
    sweep = Sweep.open(source)
    kind = "nested" if sweep.results["nested"] else "sweep"
    found = [_record(kind, run) for run in map(Run.open, sweep.runs()) if run.finished]
    shared = {name: found[0][name] for name in ("kind", "model", "seed")}
    return [*found, shared | {"rate": None, "tokens": sweep.results["shared"]["tokens"]}]


def _train(output: Path, *words: object) -> None:
    """Does what is missing of a run or a sweep; a finished one is left as it is."""
    start = ["--resume", output] if output.exists() else [*words, "--output", output]
    subprocess.run([sys.executable, str(SCRIPT), *map(str, start), "--quiet"], check=True)


def _record(kind: str, run: Run) -> Record:
    """Reads what the table needs of a finished run."""
    results = json.loads((run.path / "results.json").read_text(encoding="utf-8"))
    names = ("mask_evaluations", "tokens", "perplexity")
    return {
        "kind": kind,
        "model": Path(results["model"]).name,
        "seed": results["seed"],
        "rate": results["prune_rate"]["requested"],
        "achieved": results["prune_rate"]["achieved"],
        "parameters": results["parameters"]["pruned"],
        **{name: results[name] for name in names},
    }


def table(records: Sequence[Record]) -> str:
    """Makes the tables of each model: perplexities and differences by rate, and costs."""
    names = list(dict.fromkeys(record["model"] for record in records))
    parts = [_of_model([it for it in records if it["model"] == name]) for name in names]
    return "\n" + "\n".join(f"**{name}**, {part}" for name, part in zip(names, parts, strict=True))


def _of_model(records: Sequence[Record]) -> str:
    models = [record for record in records if record["rate"] is not None]
    sets = list(models[0]["perplexity"]["dense"])
    kinds = [kind for kind in KINDS if any(it["kind"] == kind for it in models)]
    head = ["rate", "text", "one-shot", *(TITLES[kind] for kind in kinds)]
    for kind in kinds:
        if kind in BARS:
            head += [f"{TITLES[kind]} − separate", f"within {BARS[kind]:.0%}"]
    rows = [_row(models, rate, name, kinds) for rate in _rates(models) for name in sets]
    costs = [_costs(records, kind) for kind in kinds]
    dense = ", ".join(f"{name} {models[0]['perplexity']['dense'][name]:.2f}" for name in sets)
    return (
        f"perplexity (dense: {dense}); differences in log-perplexity, seed by seed, are their mean "
        f"(lowest to highest), and what they are of the log-perplexity of separate runs:\n\n"
        f"{grid(head, rows)}\nWhat all rates took, the mean of the seeds that have them all:\n\n"
        f"{grid(['', 'mask evaluations', 'tokens', 'seeds'], costs)}"
    )


def _rates(records: Sequence[Record]) -> list[float]:
    return sorted({record["rate"] for record in records})


def _row(records: Sequence[Record], rate: float, text: str, kinds: Sequence[str]) -> list[str]:
    by_kind = {kind: dict(_values(records, kind, rate, text, "pruned")) for kind in kinds}
    first = dict(_values(records, kinds[0], rate, text, "initial"))
    row = [f"{rate:g}", text, _mean(first), *(_mean(by_kind[kind]) for kind in kinds)]
    for kind in kinds:
        if kind in BARS:
            row += _differences(by_kind[kind], by_kind.get("separate", {}), BARS[kind])
    return row


def _values(
    records: Sequence[Record], kind: str, rate: float, text: str, row: str
) -> Iterator[tuple[int, float]]:
    for record in records:
        if (record["kind"], record["rate"]) == (kind, rate):
            yield record["seed"], record["perplexity"][row][text]


def _mean(values: dict[int, float]) -> str:
    return f"{statistics.fmean(values.values()):.2f}" if values else "–"


def _differences(values: dict[int, float], others: dict[int, float], bar: float) -> list[str]:
    """Returns the difference in log-perplexity, and what it is of that of the others."""
    pairs = [(math.log(values[it]), math.log(others[it])) for it in values if it in others]
    if not pairs:
        return ["–", "–"]
    each = [value - other for value, other in pairs]
    spread = f" ({min(each):+.4f} to {max(each):+.4f})" if len(each) > 1 else ""
    share = statistics.fmean(value / other - 1 for value, other in pairs)
    verdict = "better" if share < -bar else "yes" if share <= bar else "no"
    return [f"{statistics.fmean(each):+.4f}{spread}", f"{verdict}, {share:+.2%}"]


def _costs(records: Sequence[Record], kind: str) -> list[str]:
    """Returns what a kind costs, the mean over the seeds that have all rates."""
    rates = {record["rate"] for record in records} - {None}
    of_seeds: dict[int, list[Record]] = {}
    for record in records:
        if record["kind"] == kind:
            of_seeds.setdefault(record["seed"], []).append(record)
    whole = {seed: own for seed, own in of_seeds.items() if rates <= {it["rate"] for it in own}}
    if not whole:
        return [TITLES[kind], "–", "–", "none yet"]
    evaluations, tokens = (
        sum(it.get(name, 0) for own in whole.values() for it in own) / len(whole)
        for name in ("mask_evaluations", "tokens")
    )
    return [TITLES[kind], f"{evaluations:,.0f}", f"{tokens:,.0f}", ", ".join(map(str, whole))]


def draw(records: Sequence[Record], path: Path) -> bool:
    """Draws the first model's mean perplexity over parameters; False without matplotlib."""
    model = records[0]["model"]
    models = [it for it in records if it["rate"] is not None and it["model"] == model]
    sets = list(models[0]["perplexity"]["dense"])
    lines_of_panels = math.ceil(len(sets) / 2)
    lines = [("separate", "initial", "one-shot", INITIAL, "o-")]
    looks = {"separate": (GREY, "s--"), "sweep": (LEARNED, "o-"), "nested": (BEST, "^-")}
    lines += [(kind, "pruned", TITLES[kind], *looks[kind]) for kind in KINDS]

    def fill(figure: Any) -> None:
        panels = figure.subplots(lines_of_panels, 2, squeeze=False, sharex=True)
        for panel, text in zip(panels.flat, sets, strict=False):
            for kind, row, title, color, style in lines:
                x, y = [], []
                for rate in _rates(models):
                    if found := dict(_values(models, kind, rate, text, row)):
                        own = [it for it in models if (it["kind"], it["rate"]) == (kind, rate)]
                        x.append(statistics.fmean(it["parameters"] for it in own) / 1e6)
                        y.append(statistics.fmean(found.values()))
                if x:
                    panel.plot(x, y, style, color=color, label=title, markersize=4)
            panel.axhline(models[0]["perplexity"]["dense"][text], color=GREY, label="dense")
            panel.set(yscale="log", xlabel="parameters (million)", ylabel=f"perplexity, {text}")
            plain_ticks(panel.yaxis)
        legend(figure, panels.flat)

    return save_figure(path, (9.0, 0.4 + 2.9 * lines_of_panels), fill)


if __name__ == "__main__":
    run_command(main)
