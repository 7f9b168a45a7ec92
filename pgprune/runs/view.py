"""What a command shows while it learns and when it is done."""

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pgprune.utils.command_names import spelled

_LINE_EVERY = 10.0  # seconds between two lines where the output is not a terminal
_FIGURES = {
    "loss": "rollout/loss",
    "baseline": "train/baseline",
    "reward": "rollout/reward",
    "best": "validation/best_loss",
}
_KEPT = "kept_share/"
_WIDEST = 120  # characters that two columns of text are read well in
_ROWS = {
    "dense": "dense",
    "initial": "one-shot mask of the metric",
    "masked": "learned mask",
    "best": "best on the validation batch",
    "pruned": "learned mask, as shipped",
}


class TrainingView:
    """Shows how training goes: live in a terminal, a line now and then elsewhere, or nothing.

    Args:
        title: what is trained, such as "reinforce on builtin".
        quiet: shows nothing.
        console: where to; standard output by default.
    """

    def __init__(self, title: str, *, quiet: bool = False, console: Console | None = None) -> None:
        self.title = title
        self.console = console or Console(quiet=quiet, highlight=False)
        self._live: Live | None = None
        self._last_line = -_LINE_EVERY
        self._first: tuple[float, int] | None = None  # time and timesteps of the first update
        self._now = (0.0, 0, 0, 1)  # time, step, timesteps, total
        self._metrics: dict[str, float] = {}

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
            self.console.print(self._line(), soft_wrap=True)

    def update(self, step: int, timesteps: int, total: int, metrics: Mapping[str, float]) -> None:
        """Takes in the figures of a step.

        Args:
            step: the steps done.
            timesteps: the mask evaluations done.
            total: the mask evaluations to do.
            metrics: values by name: ``rollout/loss``, ``rollout/reward``, ``train/baseline``,
                ``validation/best_loss``, and ``.../kept_share/<kind>`` for each kind of unit. What
                is absent keeps its last value; others are not shown.
        """
        now = time.monotonic()
        self._first = self._first or (now, timesteps)
        self._now = (now, step, timesteps, total)
        self._metrics.update(metrics)
        if self._live is None and now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            self.console.print(self._line(), soft_wrap=True)

    def note(self, message: str) -> None:
        """Prints a line, above the live view if there is one."""
        self.console.print(message, soft_wrap=True, markup=False)

    @property
    def rate(self) -> float:
        """Mask evaluations per second since the first update; 0 before the second."""
        if self._first is None or self._now[0] <= self._first[0]:
            return 0.0
        return (self._now[2] - self._first[1]) / (self._now[0] - self._first[0])

    def _figures(self) -> dict[str, str]:
        """The figures to show, by label."""
        shown = {
            label: f"{self._metrics[name]:.4f}"
            for label, name in _FIGURES.items()
            if name in self._metrics
        }
        for name, value in self._metrics.items():
            if _KEPT in name:
                shown[f"{name.rpartition('/')[2]} kept"] = f"{value:.1%}"
        return {**shown, "evaluations/s": f"{self.rate:.1f}"} if self.rate else shown

    def _progress(self) -> tuple[str, str]:
        _, _, timesteps, total = self._now
        left = duration((total - timesteps) / self.rate) if self.rate else "?"
        return f"{timesteps:,}/{total:,} evaluations", f"{left} left"

    def _line(self) -> str:
        figures = (f"{label} {value}" for label, value in self._figures().items())
        return ", ".join([*self._progress(), *figures])

    def _render(self) -> Group | Text:
        if self._first is None:
            return Text(f"{self.title}: starting")
        bar = Table.grid(padding=(0, 2))
        done = ProgressBar(total=self._now[3], completed=self._now[2], width=30)
        bar.add_row(Text(self.title, "bold"), done, *self._progress())
        figures = (f"[dim]{label}[/] {value}" for label, value in self._figures().items())
        return Group(bar, Columns(figures, padding=(0, 3)))


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Prints what a run reached.

    Args:
        results: the content of results.json. Its ``parameters`` may also hold ``initial`` and
            ``best``: what the metric's one-shot mask and the best mask on the validation batch
            leave, counted like ``pruned``. Its ``samples``, if any, are those of ``sample_text``.
        console: where to.
    """
    perplexity: Mapping[str, Mapping[str, float]] = results["perplexity"]
    sets = list(dict.fromkeys(name for row in perplexity.values() for name in row))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("perplexity", no_wrap=True)
    for name in [*sets, "parameters", "of prunable"]:
        table.add_column(name, justify="right", no_wrap=True)
    labels = dict(_ROWS)
    if "method" in results:
        labels |= {"masked": f"mask of {results['method']}", "pruned": "the same, as shipped"}
    for row, label in labels.items():
        if perplexity.get(row) and not (row == "pruned" and _unrepaired(perplexity)):
            values = [_perplexity(perplexity[row].get(name)) for name in sets]
            style = "bold" if row == "masked" else None
            table.add_row(label, *values, *_kept(results["parameters"], row), style=style)
    console.print(table)
    summary = {
        "pruned": f"{results['prune_rate']['achieved']:.2%} of the prunable parameters "
        f"({results['prune_rate']['requested']:.2%} asked)",
        "mask evaluations": f"{results['mask_evaluations']:,}",
        "tokens": f"{results['tokens']:,}",
        "time": duration(results["seconds"]),
        "peak memory": f"{results['peak_memory_bytes'] / 2**20:,.0f} MiB",
    }
    for label, value in summary.items():
        console.print(f"{label:<18}{value}", soft_wrap=True)
    print_samples(results.get("samples", ()), console)


def print_samples(samples: Iterable[Mapping[str, str]], console: Console) -> None:
    """Prints each prompt, and below it what the two models make of it, side by side.

    Args:
        samples: of ``pgprune.evaluation.sample.sample_text``.
        console: where to.
    """
    for sample in samples:
        prompt = " ".join(_printable(sample["prompt"]).split())
        table = Table(
            title=Text.assemble((f"{sample['text']}: ", "bold"), (f"{prompt} ...", "dim")),
            title_justify="left",
            title_style="",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            width=min(console.width, _WIDEST),
        )
        for row in ("dense", "pruned"):
            table.add_column(f"{row} model", ratio=1, overflow="fold")
        texts = (_printable(sample[row]).removeprefix(" ") for row in ("dense", "pruned"))
        table.add_row(*(Text(text.strip("\n")) for text in texts))
        console.print("", table)


def print_next(commands: Sequence[str], console: Console) -> None:
    """Prints commands to suggest, if there are any."""
    if commands:
        console.print("\n[bold]Next")
    for command in commands:
        console.print(f"  {spelled(command)}", soft_wrap=True, markup=False)


def duration(seconds: float) -> str:
    """A time span as people write it: 0:07, 3:20, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _printable(text: str) -> str:
    """A text that can do nothing to a terminal but show."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text.expandtabs(4))


def _perplexity(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3f}"


def _unrepaired(perplexity: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether the model is shipped as it was masked, so that one row says it all."""
    return perplexity["pruned"] == perplexity.get("masked")


def _kept(parameters: Mapping[str, int], row: str) -> tuple[str, str]:
    """The parameters that a row's model has, and the share of the prunable ones that it keeps."""
    count = parameters.get(row, parameters.get("pruned") if row == "masked" else None)
    if count is None:
        return "-", "-"
    removed = parameters["dense"] - count
    return f"{count:,}", f"{1 - removed / parameters['prunable']:.2%}"
