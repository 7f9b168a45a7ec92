"""Turns measured cells into the Markdown tables of docs/results.md, and a few figures."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from paper_cells import GRID, TABLES, Table, resolved

from pgprune.experiments.records import key_of
from pgprune.utils.figures import save_figure
from pgprune.utils.jsonl import Record
from pgprune.utils.markdown import grid, has_place, renew, spread

Group = dict[tuple[Any, ...], dict[Any, list[Record]]]


def _mask(name: str, figure: str) -> Callable[[Record], float]:
    """Reads a figure of one of a record's masks; NaN where there is no such mask."""

    def read(record: Record) -> float:
        found = record["masks"].get(name)
        if found is None:
            return math.nan
        return found["perplexity"][record["set"]] if figure == "perplexity" else found[figure]

    return read


VALUES: dict[str, tuple[str, Callable[[Record], float]]] = {
    "dense": ("perplexity, dense", _mask("dense", "perplexity")),
    "metric": ("perplexity, one-shot", _mask("metric", "perplexity")),
    "start": ("perplexity, start", _mask("start", "perplexity")),
    "learned": ("perplexity, learned", _mask("learned", "perplexity")),
    "oracle": ("perplexity, best mask", _mask("oracle", "perplexity")),
    "validation-metric": ("calibration loss, one-shot", _mask("metric", "validation")),
    "validation": ("calibration loss, learned", _mask("learned", "validation")),
    "validation-oracle": ("calibration loss, best mask", _mask("oracle", "validation")),
    "kept": ("parameters kept", _mask("learned", "parameters")),
}
"""What a table can show: its heading, and where it is in a record of one evaluation set."""

FORMULAS: dict[str, Callable[[int], float]] = {
    f"min({cap}, {c}/N)": lambda n, c=c, cap=cap: min(cap, c / n)
    for c in (30, 60, 120)
    for cap in (0.03, 0.06, 0.128)
} | {
    f"{c:g}/sqrt(N)": lambda n, c=c: c / math.sqrt(n) for c in (2e-3 * math.sqrt(30_000), 1.0, 2.0)
}
"""Candidates for the learning rate at N evaluations."""


def markdown(records: Iterable[Record], names: Iterable[str]) -> str:
    """Writes tables under their titles, as Markdown; those without measured cells are left out.

    Args:
        records: the JSON lines.
        names: tables to show.
    """
    records = list(records)
    bodies = {name: body(name, records) for name in names}
    parts = [f"## {TABLES[n].title} (`--only {n}`)\n\n{text}" for n, text in bodies.items() if text]
    return "\n".join(parts)


def fill(page: str, records: Iterable[Record]) -> str:
    """Renews the tables of a page, each between ``<!-- name -->`` and ``<!-- end -->``.

    Args:
        page: Markdown.
        records: the JSON lines.
    """
    records = list(records)
    for name in TABLES:
        if has_place(page, name):  # else its table need not be made
            page = renew(page, name, body(name, records))
    return page


def body(name: str, records: Iterable[Record]) -> str:
    """Returns a table without its title; empty if none of its cells is measured."""
    table = TABLES[name]
    by_key = {key_of(record): record for record in records}
    keys = list(dict.fromkeys(resolved(cell).key for cell in table.cells))
    found = [by_key[key] for key in keys if key in by_key]
    if not found:
        return ""
    text = variance_table(found) if name == "variance" else pivot(table, found)
    if len(found) < len(keys):
        text += f"\n{len(keys) - len(found)} of {len(keys)} cells are not measured yet.\n"
    if name.startswith("learning-rate") and (gaps := formula_table(found)):
        text += f"\n{gaps}"
    return text


def pivot(table: Table, records: list[Record]) -> str:
    """Tabulates means and sample deviations over seeds; with columns, one table a value."""
    if not table.columns:
        return _pivot(table, records, list(table.values))
    parts = [
        f"{VALUES[value][0].capitalize()}, by {table.columns}:\n\n{_pivot(table, records, [value])}"
        for value in table.values
    ]
    return "\n".join(parts)


def _pivot(table: Table, records: list[Record], values: list[str]) -> str:
    groups: Group = defaultdict(lambda: defaultdict(list))
    for record in _by_set(_same_seeds(table, records), every="set" in table.rows):
        fields = record["cell"] | {"set": record["set"]}
        groups[tuple(fields[f] for f in table.rows)][fields.get(table.columns, "")].append(record)
    columns = list(dict.fromkeys(column for row in groups.values() for column in row))
    if table.columns == "learning_rate":
        columns.sort()
    shown = [(column, *VALUES[value]) for value in values for column in columns]
    head = [*table.rows, *(_text(column) or name for column, name, _ in shown), "seeds"]
    lines = [
        [
            *map(_text, row),
            *(_shown([read(r) for r in cells.get(column, [])]) for column, _, read in shown),
            _counts(cells),
        ]
        for row, cells in groups.items()
    ]
    return grid(head, lines)


def _shown(values: list[float]) -> str:
    """Writes mean and sample standard deviation without NaN; parameters have no deviation."""
    numbers = [value for value in values if not math.isnan(value)]
    # Numbers of parameters differ by rounding only, and perplexities never get there.
    if numbers and statistics.fmean(numbers) >= 10_000:
        return f"{statistics.fmean(numbers):,.0f}"
    return spread(numbers)


def losses_on_grid(records: Iterable[Record]) -> dict[tuple[str, int], dict[float, float]]:
    """Averages losses of learned masks: (model, evaluations) -> {learning rate: loss}.

    Only seeds that have the whole grid count, so that all rates are compared on the same seeds.
    """
    runs: dict[tuple[str, int], dict[int, dict[float, float]]]
    runs = defaultdict(lambda: defaultdict(dict))
    for record in records:
        cell = record["cell"]
        loss = record["masks"]["learned"]["validation"]
        runs[cell["model"], cell["timesteps"]][cell["seed"]][cell["learning_rate"]] = loss
    grids = {}
    for key, by_seed in runs.items():
        whole = [losses for losses in by_seed.values() if all(rate in losses for rate in GRID)]
        if whole:
            grids[key] = {rate: statistics.mean(run[rate] for run in whole) for rate in GRID}
    return grids


def formula_table(records: list[Record]) -> str:
    """Tabulates the loss of each candidate formula above the grid's best rate, in nats."""
    grids = losses_on_grid(records)
    if not grids:
        return ""
    head = ["formula", *(f"{model} {n:,}" for model, n in grids), "worst"]
    best = ["best rate", *(f"{min(g, key=lambda r: g[r]):g}" for g in grids.values()), ""]
    lines = [best]
    for name, formula in FORMULAS.items():
        # The regret of using the formula in place of the grid's best rate.
        gaps = [_interpolate(g, formula(n)) - min(g.values()) for (_, n), g in grids.items()]
        lines.append([name, *(f"{gap:+.3f}" for gap in gaps), f"{max(gaps):+.3f}"])
    return (
        "Calibration loss above the grid's best, in nats; between two rates of the grid the loss "
        f"is interpolated.\n\n{grid(head, lines)}"
    )


def variance_table(records: list[Record]) -> str:
    """Tabulates variance at equal evaluations, as a share of that without a baseline."""
    rates = [record["cell"]["prune_rate"] for record in records]
    parts = []
    for score in ("preconditioned", "paper"):
        rows: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for record in records:
            entries = [e for e in record["estimators"] if e["score"] == score]
            # N_s times the variance: the cost of an estimate is its masks, so equal evaluations.
            none = statistics.mean(
                e["variance"] * e["masks"] for e in entries if e["baseline"] == "none"
            )
            for e in entries:
                key = (e["baseline"], _text(e["window"] or "–"), str(e["masks"]))
                rows[key].append(f"{e['variance'] * e['masks'] / none:.3f}")
            rows["none: variance x N_s", "", ""].append(f"{none:.3g}")
            rows["squared norm of the gradient", "", ""].append(f"{record['signal'][score]:.2g}")
        head = ["baseline", "T", "N_s", *(f"rate {rate}" for rate in rates)]
        lines = [[*key, *values] for key, values in rows.items()]
        parts.append(f"Score `{score}`:\n\n{grid(head, lines)}")
    return "\n".join(parts)


def draw_figures(records: list[Record], folder: Path) -> None:
    """Draws the learning-rate grid, the variances and Fig. 5, where matplotlib is installed."""
    by_table: dict[str, list[Record]] = {}
    for name, table in TABLES.items():
        keys = {resolved(cell).key for cell in table.cells}
        by_table[name] = [record for record in records if key_of(record) in keys]
    grids = losses_on_grid(by_table["learning-rate"] + by_table["learning-rate-builtin"])
    lines = {f"{model}, {n:,}": grid for (model, n), grid in grids.items()}
    axes = ("learning rate", "calibration loss (nats)")
    _draw(folder / "learning-rate.png", lines, axes, log=True)
    lines = {}
    for record in by_table["scope"]:
        cell, masks = record["cell"], record["masks"]
        if cell["seed"] == 0:
            perplexities = next(iter(masks["learned"]["perplexity"].values()))
            lines.setdefault(cell["scope"], {})[cell["prune_rate"]] = perplexities
    _draw(folder / "scope.png", lines, ("prune rate", "perplexity, seed 0"))
    lines = {}
    for record in by_table["variance"]:
        for e in record["estimators"]:
            if (e["score"], e["baseline"]) == ("preconditioned", "moving-average"):
                name = f"rate {record['cell']['prune_rate']}, N_s {e['masks']}"
                lines.setdefault(name, {})[e["window"]] = e["variance"] * e["masks"]
    # One rate only, or the figure has five times the lines.
    kept = {name: line for name, line in lines.items() if "rate 0.5" in name}
    _draw(folder / "variance.png", kept, ("window T", "variance x N_s"), log=True)


def _draw(
    path: Path,
    lines: Mapping[str, Mapping[float, float]],
    axes: tuple[str, str],
    log: bool = False,
) -> None:
    def draw(figure: Any) -> None:
        plot = figure.subplots()
        for name, line in lines.items():
            plot.plot(sorted(line), [line[x] for x in sorted(line)], marker="o", label=name)
        plot.set(xlabel=axes[0], ylabel=axes[1], xscale="log" if log else "linear")
        plot.legend(fontsize="small")

    if lines:
        save_figure(path, (6, 4), draw)


def _same_seeds(table: Table, records: list[Record]) -> list[Record]:
    """Selects the records of the seeds that all entries on the same problem have."""
    if not table.columns:
        return records
    fields = [field for field in (*table.rows, table.columns) if field != "set"]
    seeds: dict[tuple[str, int], dict[tuple[Any, ...], set[int]]]
    seeds = defaultdict(lambda: defaultdict(set))
    for record in records:
        cell = record["cell"]
        seeds[_problem(cell)][tuple(cell[field] for field in fields)].add(cell["seed"])
    # Columns are compared on seeds that all have; more seeds of one would bias the means.
    common = {problem: set.intersection(*found.values()) for problem, found in seeds.items()}
    return [r for r in records if r["cell"]["seed"] in common[_problem(r["cell"])]]


def _problem(cell: dict[str, Any]) -> tuple[str, int]:
    """Returns the model and the evaluations; compared entries have the same ones."""
    return cell["model"], cell["timesteps"]


def _by_set(records: Iterable[Record], every: bool) -> Iterable[Record]:
    """Repeats each record for each of its evaluation texts, or takes the first text only."""
    for record in records:
        # The first text is the calibration's own domain, all that most tables show.
        for name in list(record["masks"]["dense"]["perplexity"])[: None if every else 1]:
            yield record | {"set": name}


def _interpolate(grid: dict[float, float], rate: float) -> float:
    """Interpolates the loss at a learning rate, linearly in the logarithm of the rate."""
    # The grid doubles from rate to rate, so log2 counts the steps from its first one.
    place = min(max(math.log2(rate / GRID[0]), 0.0), len(GRID) - 1.0)
    low = min(int(place), len(GRID) - 2)
    return grid[GRID[low]] + (place - low) * (grid[GRID[low + 1]] - grid[GRID[low]])


def _counts(cells: dict[Any, list[Record]]) -> str:
    numbers = sorted({len(records) for records in cells.values()})
    return "–".join(map(str, numbers))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
