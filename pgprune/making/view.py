"""Prints what a make will do, and what it has reached."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pgprune.making.card import cells
from pgprune.making.steps import Step, total_seconds
from pgprune.making.table import Row
from pgprune.runs.number_table import print_table
from pgprune.runs.view import print_next
from pgprune.utils.progress import duration

_MIB = 2**20


def print_plan(planned: Sequence[Step], console: Console) -> None:
    """Prints the stages to come with their time and memory."""
    head = ["stage", "what", "about", "MiB of weights"]
    rows = [
        [step.name, step.what, duration(step.seconds), f"{step.memory / _MIB:,.0f}"]
        for step in planned
    ]
    rows.append(["all", "", duration(total_seconds(planned)), ""])
    print_table(head, rows, console, names=2, apart=1)
    console.print(
        "The time is that of two evaluations, times how many there will be; memory is counted, "
        "without activations.",
        markup=False,
    )


def print_made(path: Path, rows: Sequence[Row], formats: Sequence[str], console: Console) -> None:
    """Prints the table of stages and where the model is."""
    head, lines = cells(list(rows))
    print_table(head, lines, console, bold=[len(lines) - 1])
    for name in formats:
        console.print(f"{name:<10}{path / name}", soft_wrap=True, markup=False)
    console.print(f"{'card':<10}{path / 'README.md'}", soft_wrap=True, markup=False)
    if "hf" in formats:
        print_next([f"pgprune evaluate {shlex.quote(str(path / 'hf'))} --tasks paper"], console)
