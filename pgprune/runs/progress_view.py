"""Shows the progress of a long piece of work: training of an agent, or finetuning."""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_LINE_EVERY = 10.0  # seconds between two lines where the output is not a terminal
_FIGURES = {
    "loss": "rollout/loss",
    "baseline": "train/baseline",
    "reward": "rollout/reward",
    "best": "validation/best_loss",
}
_KEPT_SHARE = "kept_share/"


class ProgressView:
    """Shows progress: live in a terminal, as a line now and then elsewhere, or not at all.

    Args:
        title: names the work, such as "reinforce on builtin".
        unit: names what is counted, in the plural.
        quiet: shows nothing.
        console: to print to; standard output by default.
        clock: returns seconds.
    """

    def __init__(
        self,
        title: str,
        unit: str = "evaluations",
        *,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title = title
        self.console = console or Console(quiet=quiet, highlight=False)
        self._unit, self._clock = unit, clock
        self._live: Live | None = None
        self._last_line = -_LINE_EVERY
        self._first: tuple[float, int] | None = None  # time and count of the first update
        self._now = (0.0, 0, 1)  # time, done, total
        self._figures: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.console.quiet:
            self._live = Live(
                get_renderable=self._render, console=self.console, refresh_per_second=4
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
        elif self._first:
            self.console.print(self.line(), soft_wrap=True)

    def update(self, done: int, total: int, figures: Mapping[str, str]) -> None:
        """Takes in how far the work is; figures that are absent keep their last value."""
        now = self._clock()
        self._first = self._first or (now, done)
        self._now = (now, done, total)
        self._figures.update(figures)
        # A log file gets few lines, whatever the speed of the steps.
        if self._live is None and now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            self.console.print(self.line(), soft_wrap=True)

    def note(self, message: str) -> None:
        """Prints a line, above the live view if there is one."""
        self.console.print(message, soft_wrap=True, markup=False)

    def line(self) -> str:
        """Returns the progress in one line."""
        figures = (f"{label} {value}" for label, value in self._shown().items())
        return ", ".join([*self._progress(), *figures])

    @property
    def _rate(self) -> float:
        """Units per second since the first update; 0 before the second."""
        now, done, _ = self._now
        if self._first is None or now <= self._first[0]:
            return 0.0
        # A resumed run begins at a high count, which this process did not do.
        return (done - self._first[1]) / (now - self._first[0])

    def _shown(self) -> dict[str, str]:
        rate = {f"{self._unit}/s": f"{self._rate:.1f}"} if self._rate else {}
        return self._figures | rate

    def _progress(self) -> tuple[str, str]:
        _, done, total = self._now
        left = duration((total - done) / self._rate) if self._rate else "?"
        return f"{done:,}/{total:,} {self._unit}", f"{left} left"

    def _render(self) -> Group | Text:
        if self._first is None:
            return Text(f"{self.title}: starting")
        # Rich draws this several times a second, so it only reads what update() has stored.
        bar = Table.grid(padding=(0, 2))
        _, done, total = self._now
        progress = ProgressBar(total=total, completed=done, width=30)
        bar.add_row(Text(self.title, "bold"), progress, *self._progress())
        figures = (f"[dim]{label}[/] {value}" for label, value in self._shown().items())
        return Group(bar, Columns(figures, padding=(0, 3)))


def training_figures(metrics: Mapping[str, float]) -> dict[str, str]:
    """Picks the figures of a training step that people watch: texts by their label.

    Args:
        metrics: values by name: ``rollout/loss``, ``rollout/reward``, ``train/baseline``,
            ``validation/best_loss``, and ``.../kept_share/<kind>`` for each kind of unit; others
            are left out.
    """
    shown = {label: f"{metrics[name]:.4f}" for label, name in _FIGURES.items() if name in metrics}
    for name, value in metrics.items():
        if _KEPT_SHARE in name:
            shown[f"{name.rpartition('/')[2]} kept"] = f"{value:.1%}"
    return shown


def duration(seconds: float) -> str:
    """Writes a time span as people do: 0:07, 3:20, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
