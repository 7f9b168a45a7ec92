"""Shows evaluations: a line as each is done, and tables of several models side by side."""

import math
import statistics
from collections.abc import Sequence

from rich.console import Console

from pgprune.errors import printable
from pgprune.evaluation.zero_shot import METRICS
from pgprune.runs.number_table import print_table
from pgprune.runs.view import with_error
from pgprune.utils.jsonl import Record

Records = Sequence[Record]

_MARKS = {
    "at chance": ("~", "within 2 standard errors of guessing"),
    "below chance": ("<", "more than 2 standard errors worse than guessing"),
}
_SHORT = {
    "arc_easy": "ARC-e",
    "arc_challenge": "ARC-c",
    "hellaswag": "HellaS",
    "piqa": "PIQA",
    "winogrande": "WinoG",
}


def line(record: Record) -> str:
    """Writes one record in a line."""
    name, seconds = record["name"], f"{record['seconds']:,.1f} s"
    if record["what"] == "perplexity":
        return (
            f"{name}: perplexity {_number(record['perplexity'], record.get('standard_error'))} "
            f"on {record['text']} "
            f"({record['windows']:,} windows of {record['sequence_length']:,} tokens, "
            f"{_number(record['bits_per_byte'])} bits per byte, {seconds})"
        )
    parts = []
    for metric, value in record["accuracy"].items():
        error = record["stderr"][metric]
        spread = "" if error is None else f" ± {error:.1%}"
        parts.append(f"{metric} {value:.1%}{spread} ({record['verdict'][metric]})")
    left_out = f"{record['left_out']:,} left out as too long, " if record["left_out"] else ""
    return (
        f"{name}: {record['task']}: {', '.join(parts)}, chance {record['chance']:.1%} "
        f"({record['items']:,} items, {left_out}{seconds})"
    )


def print_tables(records: Records, console: Console) -> None:
    """Prints all records as tables, models side by side, and what the numbers depend on."""
    perplexities = [record for record in records if record["what"] == "perplexity"]
    accuracies = [record for record in records if record["what"] == "zero-shot"]
    if perplexities:
        _print_perplexities(perplexities, console)
    if accuracies:
        _print_accuracies(accuracies, console)
    _print_protocol(records, console)


def averages(records: Records) -> dict[str, tuple[float, float | None]]:
    """Averages ``acc``, and ``acc_norm`` or else ``acc``, over the tasks of one model (Table 1).

    Returns:
        By metric, the mean and its standard error over items; None where a task has none.
    """
    means = {}
    for metric in METRICS:
        # Tasks whose answers are all the same text have no acc_norm.
        names = [metric if metric in row["accuracy"] else "acc" for row in records]
        values = [row["accuracy"][name] for row, name in zip(records, names, strict=True)]
        errors = [row["stderr"][name] for row, name in zip(records, names, strict=True)]
        means[metric] = statistics.fmean(values), error_of_mean(errors)
    return means


def error_of_mean(errors: Sequence[float | None]) -> float | None:
    """Returns the standard error of a mean from those of its parts, which are independent."""
    known = [error for error in errors if error is not None]
    return math.hypot(*known) / len(errors) if len(known) == len(errors) else None


def _print_perplexities(records: Records, console: Console) -> None:
    _print_texts("perplexity", records, console)
    # A token of one tokenizer is not one of the other: only bytes compare.
    if len({row["tokenizer"]["hash"] for row in records}) > 1:
        console.print(
            "These models have different tokenizers: perplexities of tokens do not compare, bits "
            "per byte do.",
            soft_wrap=True,
        )
        _print_texts("bits_per_byte", records, console)


def _print_texts(key: str, records: Records, console: Console) -> None:
    """Prints a table of models and texts; the share of parameters is of the first model."""
    texts, cells = _distinct(records, "text"), {(row["name"], row["text"]): row for row in records}
    sizes = {row["name"]: row["parameters"] for row in records}
    rows = [
        [
            name,
            f"{size:,}",
            f"{size / records[0]['parameters']:.1%}",
            *(_figure(cells.get((name, text), {}), key) for text in texts),
        ]
        for name, size in sizes.items()
    ]
    print_table([key.replace("_", " "), "parameters", "ratio", *texts], rows, console)


def _print_accuracies(records: Records, console: Console) -> None:
    tasks, cells = _distinct(records, "task"), {(row["name"], row["task"]): row for row in records}
    lines = []
    for name in _distinct(records, "name"):
        rows = [cells[name, task] for task in tasks if (name, task) in cells]
        # A mean over fewer tasks than the others would not compare with theirs.
        means = averages(rows) if len(rows) == len(tasks) else {}
        for metric in METRICS:
            values = (_accuracy(cells.get((name, task)), metric) for task in tasks)
            lines.append([name, metric, *values, _percent(*means.get(metric, (None,)))])
    rows = [next(row for row in records if row["task"] == task) for task in tasks]
    chances = [row["chance"] for row in rows]
    head = ["zero-shot, %", "metric", *(_SHORT.get(task, task) for task in tasks), "mean"]
    lines.append(["chance", "", *map(_percent, [*chances, sum(chances) / len(chances)])])
    lines.append(["items", "", *(f"{row['items']:,}" for row in rows), ""])
    print_table(head, lines, console, names=2, apart=2)
    verdicts = {verdict for row in records for verdict in row["verdict"].values()}
    for verdict, (mark, words) in _MARKS.items():
        if verdict in verdicts:
            console.print(f"{mark} {verdict}: {words}", soft_wrap=True)
    if not all("acc_norm" in row["accuracy"] for row in records):
        console.print("- no acc_norm: its mean takes acc there", soft_wrap=True)


def _print_protocol(records: Records, console: Console) -> None:
    """Says what the numbers depend on, once for each tokenizer."""
    for tokenizer in {row["tokenizer"]["hash"]: row["tokenizer"] for row in records}.values():
        rows = [row for row in records if row["tokenizer"] == tokenizer]
        read = [row for row in rows if row["what"] == "perplexity"]
        # Windows, BOS rule and tokenizer: without them a perplexity means nothing.
        windows = {row["text"]: f"{row['windows']:,} of {row['text']}" for row in read}
        text = (
            f"tokenizer {tokenizer['name']} ({tokenizer['class']}, {tokenizer['vocabulary']:,} "
            f"tokens, {tokenizer['hash']}); BOS: {rows[0]['bos']}"
        )
        if read:
            text += (
                f"; windows of {read[0]['sequence_length']:,} tokens, each read on its own: "
                f"{', '.join(windows.values())}; ± is the standard error over them"
            )
        console.print(printable(text), soft_wrap=True, markup=False)


def _distinct(records: Records, key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in records))


def _accuracy(record: Record | None, metric: str) -> str:
    if record is None or metric not in record["accuracy"]:
        return "-"
    mark, _ = _MARKS.get(record["verdict"][metric], ("", ""))
    return _percent(record["accuracy"][metric]) + mark


def _percent(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def _figure(record: Record, key: str) -> str:
    # Bits per byte are logarithms: their standard error is another one.
    error = record.get("standard_error") if key == "perplexity" else None
    return _number(record.get(key), error)


def _number(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "-"
    return with_error(value, error) if math.isfinite(value) else "not finite"
