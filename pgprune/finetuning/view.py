"""What finetuning shows: a progress bar or lines while it learns, and a table at the end."""

import shlex
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pgprune.runs.view import duration
from pgprune.utils.command_names import spelled

_LINE_EVERY = 10.0  # seconds between two lines where the output is not a terminal
_REMEMBERED = 0.95  # of the shown loss, from one update to the next


class FinetuningView:
    """Shows how finetuning goes: live in a terminal, a line now and then elsewhere, or nothing.

    Args:
        title: what is finetuned.
        quiet: shows nothing.
        console: where to; standard output by default.
    """

    def __init__(self, title: str, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(quiet=quiet, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TextColumn("updates, loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task(title, total=None, loss="-")
        self._loss: float | None = None
        self._first: tuple[float, int] | None = None
        self._last_line = -_LINE_EVERY

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def note(self, message: str) -> None:
        """Prints a line, above the bar if there is one."""
        self.console.print(message, soft_wrap=True, markup=False)

    def update(self, step: int, total: int, loss: float) -> None:
        """Takes in an update.

        Args:
            step: the updates done.
            total: the updates to do.
            loss: of the last one; a moving average is shown.
        """
        before = loss if self._loss is None else self._loss
        self._loss = _REMEMBERED * before + (1 - _REMEMBERED) * loss
        now = time.monotonic()
        self._first = self._first or (now, step)
        self._bar.update(self._task, completed=step, total=total, loss=f"{self._loss:.4f}")
        if not self.console.is_terminal and now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            rate = (step - self._first[1]) / (now - self._first[0] or 1)
            left = duration((total - step) / rate) if rate else "?"
            self.note(f"{step:,}/{total:,} updates, loss {self._loss:.4f}, {left} left")


def print_finetuning(record: Mapping[str, Any], console: Console) -> None:
    """Prints perplexity before and after, what it took, and what to do next.

    Args:
        record: what ``Finetuning.run`` returns.
        console: where to.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("perplexity", no_wrap=True)
    for name in record["perplexity"]["before"]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in ("before", "after"):
        values = (f"{value:,.3f}" for value in record["perplexity"][row].values())
        table.add_row(row, *values, style="bold" if row == "after" else None)
    console.print(table)
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
    output = shlex.quote(record["output"])
    console.print("\n[bold]Next")
    console.print(spelled(f"  pgprune evaluate {output}"), soft_wrap=True, markup=False)
