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
        for when in ("before", "after")
    ]
    head = ["perplexity", *record["perplexity"]["before"]]
    print_table(head, rows, console, bold=[1])
    updates, lora = record["updates"], record["lora"]
    if not record["completed"]:
        console.print(
            f"interrupted after {updates['done']:,} of {updates['planned']:,} updates; what was "
            "learned until then is in the model",
            soft_wrap=True,
        )
    summary = {
        "parameters": f"{record['parameters']:,}, as before; {lora['trained_parameters']:,} in the "
        "adapters, which are merged",
        "updates": f"{updates['done']:,} of {lora['batch_size']} windows x "
        f"{record['data']['sequence_length']:,} tokens",
        "time": duration(record["seconds"]),
        "peak memory": f"{record['peak_memory_bytes'] / 2**20:,.0f} MiB",
    }
    for label, value in summary.items():
        console.print(f"{label:<18}{value}", soft_wrap=True)
    # Ready to paste, also where the path has spaces.
    output = shlex.quote(record["output"])
    print_next([f"pgprune evaluate {output}"], console)
