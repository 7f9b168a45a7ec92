"""The tables of a comparison, as Markdown: one of all models, one of each, and what failed."""

import math
import statistics
from collections.abc import Sequence

from pgprune.errors import PruningError, printable
from pgprune.evaluation.tables import error_of_mean
from pgprune.experiments.report import failures_list
from pgprune.experiments.rows import (
    Column,
    Row,
    best_forward,
    columns_of,
    nearest_rate,
    ranked,
    rates_of,
    rows_of,
)
from pgprune.utils.jsonl import Record
from pgprune.utils.markdown import grid, plain, spread

_MIB = 2**20


def tables(records: Sequence[Record], at_rate: float | None = None) -> str:
    """Writes all tables and what failed, under a sentence that says what is best.

    Args:
        records: of a comparison.
        at_rate: for which seconds and memory are shown; None is 0.3 or the nearest.

    Raises:
        PruningError: nothing was measured.
    """
    rows = rows_of(records)
    if not rows:
        raise PruningError(
            "nothing of this comparison is measured yet; leave out --report, or see "
            "comparison.jsonl"
        )
    columns = columns_of(rows)
    models = list(dict.fromkeys(model for model, _, _ in columns))
    rate = nearest_rate(rates_of(rows), at_rate)
    parts = [summary(rows, columns)]
    if len(models) > 1:
        parts.append(f"Geometric means of perplexity.\n\n{_overview(rows, columns, models)}")
    for model in models:
        parts.append(_model_table(rows, [one for one in columns if one[0] == model], records, rate))
    return "\n".join(filter(None, [*parts, failures_list(records)]))


def summary(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Names the best row without gradients on average, and the next one, in one line."""
    best = best_forward(rows, columns)
    if best is None:
        return "No forward-only row has all the columns yet.\n"
    others = [row for row in rows if row is not best]
    second = best_forward(others, columns)
    next_one = f"; the next is {_name(second)}, {second.mean(columns):.4g}" if second else ""
    return (
        f"Best forward-only row on average: {_name(best)}, whose geometric mean of perplexity over "
        f"{len(columns)} columns is {best.mean(columns):.4g}{next_one}.\n"
    )


def _overview(rows: Sequence[Row], columns: Sequence[Column], models: Sequence[str]) -> str:
    best = best_forward(rows, columns)
    head, lines = ["method", "repair", "type", *map(plain, models), "all"], []
    for row in ranked(rows, columns):
        means = [row.mean([one for one in columns if one[0] == model]) for model in models]
        lines.append([*_names(row, row is best), *map(_mean, [*means, row.mean(columns)])])
    return grid(head, lines)


def _model_table(
    rows: Sequence[Row], columns: Sequence[Column], records: Sequence[Record], rate: float
) -> str:
    """Writes the table of one model under a line about it."""
    model = columns[0][0]
    failed = {(r["method"], r["rate"]) for r in records if r["model"] == model and "error" in r}
    sets = list(dict.fromkeys(name for _, _, name in columns))
    rates = list(dict.fromkeys(rate for _, rate, _ in columns))
    best = best_forward(rows, columns)
    head = [
        f"{rate:g} {plain(name)}" if len(sets) > 1 else f"{rate:g}" for _, rate, name in columns
    ]
    costs = ["parameters kept", f"seconds at {rate:g}", f"MiB at {rate:g}", "seeds"]
    head = ["method", "repair", "type", *head, "mean", *costs]
    lines = []
    ordered = ranked(rows, columns)
    for row in ordered:
        # A method that refuses a rate is a result; a dash says that nobody has measured it.
        lacking = ["fails" if (row.method, rate) in failed else "–" for _, rate, _ in columns]
        cells = [
            spread(values) if (values := row.perplexities(column)) else lack
            for column, lack in zip(columns, lacking, strict=True)
        ]
        names = _names(row, row is best)
        lines.append([*names, *cells, _mean(row.mean(columns)), *_costs(row, model, rates, rate)])
    # What is said of the dense model is in every record of the model.
    one = next(record for row in rows for record in row.records if record["model"] == model)
    dense = ", ".join(f"{plain(name)} {spread([one['dense'][name]])}" for name in sets)
    size = f"{one['parameters']['dense']:,}"
    shots = _zero_shot_table(ordered, model, rate)
    code = printable(model).replace("`", "'")
    about = f"`{code}`: {size} parameters; dense perplexity {dense}. Columns are prune rates."
    if error := _largest_error(rows, model):
        about += f" Standard errors over windows are at most {error:.1%} of a perplexity."
    return f"{about}\n\n" + grid(head, lines) + (f"\n{shots}" if shots else "")


def _largest_error(rows: Sequence[Row], model: str) -> float:
    """Returns the largest standard error of a model's perplexities, as a share of them; 0 if none.

    Records of earlier versions have none.
    """
    shares = [
        error / record["perplexity"][name]
        for row in rows
        for record in row.records
        if record["model"] == model
        for name, error in (record.get("standard_error") or {}).items()
        if error is not None and record["perplexity"][name]
    ]
    return max(shares, default=0)


def _costs(row: Row, model: str, rates: Sequence[float], rate: float) -> list[str]:
    """Returns parameters kept at every rate, and seconds, memory and seeds at one rate."""
    kept = []
    for each in rates:
        found = [record["parameters"]["pruned"] for record in row.of(model, each)]
        kept.append(f"{statistics.fmean(found):,.0f}" if found else "–")
    here = row.of(model, rate)
    seconds = spread([record["seconds"] for record in here])
    mebibytes = [record["memory_bytes"] / _MIB for record in here]
    memory = f"{statistics.fmean(mebibytes):,.0f}" if here else "–"
    seeds = {record["seed"] for record in row.records if record["model"] == model}
    return [" / ".join(kept), seconds, memory, str(len(seeds))]


def _zero_shot_table(rows: Sequence[Row], model: str, wanted: float) -> str:
    """Tabulates the tasks on which some row is better than chance, and the mean over all tasks.

    The accuracies are those at the rate nearest to a wanted one, among the measured rates.
    """
    tried = [one for row in rows for one in row.records if _answers(one, model)]
    if not tried:
        return ""
    rate = nearest_rate([one["rate"] for one in tried], wanted)
    shots = [one["zero_shot"] for one in tried if one["rate"] == rate]
    # At chance, differences between methods are noise, so such tasks are left out.
    above = [
        task for task in shots[0] if any(shot[task]["verdict"] == "above chance" for shot in shots)
    ]
    mean = [f"mean of {len(shots[0])}"] if len(shots[0]) > 1 else []
    lines = []
    for row in rows if above else []:
        own = [one["zero_shot"] for one in row.of(model, rate) if _answers(one, model)]
        if own:
            cells = [_accuracy([shot[task] for shot in own]) for task in above]
            lines.append([*_names(row), *cells, *([_mean_accuracy(own)] if mean else [])])
    if not lines:
        return ""
    about = "; the mean is over all tasks, ± its standard error over items" if mean else ""
    return f"Zero-shot accuracy (%) at {rate:g}, tasks with a row above chance{about}.\n\n" + grid(
        ["method", "repair", "type", *map(plain, above), *mean], lines
    )


def _mean_accuracy(shots: Sequence[Record]) -> str:
    """Returns the mean over tasks and seeds, in percent, and its standard error over items."""
    tasks = [one for shot in shots for one in shot.values()]
    mean = 100 * statistics.fmean(one["accuracy"] for one in tasks)
    # Seeds answer the same items, so more of them do not make the error smaller.
    errors = [error_of_mean([one.get("stderr") for one in shot.values()]) for shot in shots]
    known = [100 * error for error in errors if error is not None]
    return f"{mean:.1f} ± {statistics.fmean(known):.1f}" if known else f"{mean:.1f}"


def _answers(record: Record, model: str) -> bool:
    """Tells whether a record is of a model and has zero-shot accuracies."""
    return record["model"] == model and "zero_shot" in record


def _accuracy(found: Sequence[Record]) -> str:
    """Returns accuracies over seeds, in percent, and whether none is above chance."""
    value = spread([100 * one["accuracy"] for one in found])
    verdicts = {one["verdict"] for one in found}
    return value if "above chance" in verdicts else f"{value} {' or '.join(sorted(verdicts))}"


def _name(row: Row) -> str:
    return plain(row.method if row.repair in ("none", "own") else f"{row.method} + {row.repair}")


def _names(row: Row, bold: bool = False) -> list[str]:
    mark = "**" if bold else ""
    names = [f"{mark}{plain(name)}{mark}" for name in (row.method, row.repair)]
    return [*names, row.kind]


def _mean(value: float) -> str:
    return "–" if math.isnan(value) else spread([value])
