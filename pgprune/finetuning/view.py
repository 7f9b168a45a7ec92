"""Prints what finetuning has reached."""

import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from pgprune.runs.number_table import print_table
from pgprune.runs.view import print_next, with_error
from pgprune.utils.progress import duration


def print_finetuning(record: Mapping[str, Any], console: Console) -> None:
    """Prints perplexity before and after, what it took, and what to do next."""
    errors = record.get("standard_error", {})  # not of earlier versions
    rows = [
        [
            when,
            *(
                with_error(value, errors.get(when, {}).get(name))
                for name, value in record["perplexity"][when].items()
            ),
        ]
        for when in ("before", "local", "after")
        if when in record["perplexity"]
    ]
    head = ["perplexity", *record["perplexity"]["before"]]
    print_table(head, rows, console, bold=[len(rows) - 1])
    summary = (
        {"parameters": f"{record['parameters']:,}, as before"}
        | _summary(record)
        | {
            "time": duration(record["seconds"]),
            "peak memory": f"{record['peak_memory_bytes'] / 2**20:,.0f} MiB",
        }
    )
    for label, value in summary.items():
        console.print(f"{label:<18}{value}", soft_wrap=True)
    # Ready to paste, also where the path has spaces.
    output = shlex.quote(record["output"])
    print_next([f"pgprune evaluate {output}"], console)


def _summary(record: Mapping[str, Any]) -> dict[str, str]:
    """Returns lines on what the stages did, by their label."""
    lines: dict[str, str] = {}
    for stage in record["stages"]:
        lines[stage["stage"]] = f"{stage['tokens']:,} tokens in {duration(stage['seconds'])}"
    if "local" in record:
        blocks = record["local"]["blocks"]
        better = sum(block["after"] < block["before"] for block in blocks)
        before, after = (sum(block[when] for block in blocks) for when in ("before", "after"))
        lines["blocks"] = f"{better} of {len(blocks)} better on held-out windows"
        if before:
            lines["blocks"] += f"; the sum of their errors is {after / before:.2f} of that before"
    if "training" not in record:
        return lines
    training, updates = record["training"], record["updates"]
    trained = f"{training['trained_parameters']:,} numbers"
    lines["trained"] = trained + (" of adapters, which are merged" if "lora" in record else "")
    lines["updates"] = (
        f"{updates['done']:,} of {training['batch_size']} windows x "
        f"{record['data']['sequence_length']:,} tokens"
    )
    if updates["done"] < updates["planned"]:
        why = "nothing became better" if record["completed"] else "interrupted"
        lines["updates"] += f"; {why}, {updates['planned']:,} were planned"
    if kept := record.get("kept"):
        history = kept["history"]
        best = next(look for look in history if look["step"] == kept["update"])
        pairs = (
            f"{name} {history[0]['losses'][name]:.3f} > {loss:.3f}"
            for name, loss in best["losses"].items()
        )
        lines["held-out loss"] = f"{', '.join(pairs)}, of update {kept['update']:,}"
    return lines
