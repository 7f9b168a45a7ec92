"""Figures of a run. Without matplotlib there is a note and no figure."""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pgprune.files import saving, write_file
from pgprune.progress import read_progress

_log = logging.getLogger(__name__)

_LEARNED, _INITIAL, _BEST, _GREY = "#1f5fa8", "#f0a04b", "#2a9d57", "#888888"
_STYLE: Any = {  # matplotlib spells out every key in its types
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "font.size": 10,
    "legend.frameon": False,
}


class LayerGroup(Protocol):
    """What a figure needs to know about a group of units."""

    @property
    def layer(self) -> int:
        """The decoder layer."""

    @property
    def kind(self) -> str:
        """The kind of unit."""


def plot_learning_curve(progress: Path, path: Path) -> bool:
    """Draws the loss of the sampled masks, the baseline and the validation losses.

    Args:
        progress: a run's progress.csv. The columns ``rollout/loss``, ``train/baseline``,
            ``validation/loss`` and ``validation/best_loss`` are drawn where they are present,
            over ``time/timesteps`` or else over ``step``.
        path: the PNG file.

    Returns:
        Whether it was drawn: not without matplotlib.

    Raises:
        PruningError: the file cannot be written.
    """
    columns = {name: np.array(values) for name, values in read_progress(progress).items()}
    x, label = columns["step"], "steps"
    if "time/timesteps" in columns:
        x, label = columns["time/timesteps"], "mask evaluations"

    def draw(figure: Any) -> None:
        axes = figure.add_subplot(xlabel=label, ylabel="cross-entropy (nats a token)")
        _line(axes, x, columns.get("rollout/loss"), "o", "sampled masks", color=_LEARNED, alpha=0.2)
        _line(axes, x, columns.get("train/baseline"), "-", "baseline", color=_GREY, linewidth=0.8)
        smooth = _smooth(columns.get("rollout/loss"))
        _line(axes, x, smooth, "-", "sampled masks, smoothed", color=_LEARNED, linewidth=2)
        rounded, best = columns.get("validation/loss"), columns.get("validation/best_loss")
        _line(axes, x, rounded, "o-", "rounded mask on the validation batch", color=_INITIAL)
        _line(axes, x, best, "--", "best rounded mask", color=_BEST, linewidth=1.5)
        axes.set_title("Learning curve", loc="left", weight="bold")
        if axes.lines:
            axes.legend(loc="upper right")

    return save_figure(path, (7.0, 4.2), draw)


def plot_kept_shares(
    path: Path,
    groups: Sequence[LayerGroup],
    learned: npt.ArrayLike,
    initial: npt.ArrayLike | None = None,
    target: float | None = None,
) -> bool:
    """Draws the kept share of every layer, one panel for each kind (Fig. 6 of the paper).

    Args:
        path: the PNG file.
        groups: the groups of the units.
        learned: the learned mask's kept share in each group, (groups,).
        initial: the initialising metric's, (groups,).
        target: the share that the budget leaves.

    Returns:
        Whether it was drawn: not without matplotlib.

    Raises:
        PruningError: the file cannot be written.
    """
    kinds = list(dict.fromkeys(group.kind for group in groups))
    layers = 1 + max(group.layer for group in groups)
    bars = [(np.asarray(learned, dtype=float), _LEARNED, "learned")]
    if initial is not None:
        bars.insert(0, (np.asarray(initial, dtype=float), _INITIAL, "initial"))
    width = 0.8 / len(bars)

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
        for panel, kind in zip(panels, kinds, strict=True):
            members = [index for index, group in enumerate(groups) if group.kind == kind]
            x = np.array([groups[index].layer for index in members])
            for number, (shares, color, label) in enumerate(bars):
                left = x - 0.4 + number * width
                panel.bar(
                    left, 100 * shares[members], width, align="edge", color=color, label=label
                )
            if target is not None:
                panel.axhline(
                    100 * target, color=_GREY, linestyle="--", linewidth=1, label="target"
                )
            panel.set(ylim=(0, 105), ylabel=f"{kind} kept (%)")
            panel.grid(axis="x", visible=False)
        panels[-1].set(xlabel="layer", xlim=(-0.6, layers - 0.4))
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
        figure.suptitle("Kept share by layer", x=0.01, ha="left", weight="bold")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper right", ncols=len(labels))

    return save_figure(path, (max(6.0, 0.22 * layers + 2), 1.2 + 2.1 * len(kinds)), draw)


def plot_gains(
    path: Path,
    settings: Sequence[str],
    gains: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    reference: str,
) -> bool:
    """Draws how many times better models are than a reference, one panel for each quantity.

    Args:
        path: the PNG file.
        settings: the names of what was measured, S of them.
        gains: by panel and model, S of (median, low, high).
        reference: the name of the model whose gain is 1.

    Returns:
        Whether it was drawn: not without matplotlib.

    Raises:
        PruningError: the file cannot be written.
    """
    x = np.arange(len(settings))
    colors = (_LEARNED, _INITIAL, _BEST, "#b0413e", "#7a5aa6", _GREY)

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(gains), squeeze=False)[0]
        for panel, (title, models) in zip(panels, gains.items(), strict=True):
            width = 0.8 / len(models)
            for number, (name, values) in enumerate(models.items()):
                middle, low, high = np.array(values).T  # each (S,)
                left = x - 0.4 + (number + 0.5) * width
                color = colors[number % len(colors)]
                panel.bar(left, middle, width, color=color, label=name)
                panel.vlines(left, low, high, color="black", linewidth=1)
            panel.axhline(1, color=_GREY, linestyle="--", linewidth=1, label=reference)
            panel.set_xticks(x, settings)
            panel.set(xlabel="batch x tokens")
            panel.set_title(title, loc="left", weight="bold")
            panel.grid(axis="x", visible=False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))

    return save_figure(path, ((1.6 + 0.7 * len(settings)) * len(gains) + 1, 4.0), draw)


def save_figure(path: Path, size: tuple[float, float], draw: Callable[[Any], object]) -> bool:
    """Draws into a new figure and writes it, without any window or global state.

    Args:
        path: the PNG file.
        size: inches.
        draw: is given the figure.

    Returns:
        Whether it was drawn: not without matplotlib.

    Raises:
        PruningError: the file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        _log.warning("no %s: it needs pip install 'pgprune[plots]'", path.name)
        return False
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=150)
    with saving(path, "free some space"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content.getvalue())
    return True


def plain_ticks(axis: Any) -> None:
    """Gives a logarithmic axis numbers such as 20 and 50 in place of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _line(axes: Any, x: Any, y: Any, style: str, label: str, **look: Any) -> None:
    """Plots a column where it has values."""
    if y is not None and np.isfinite(y).any():
        present = np.isfinite(y)
        axes.plot(x[present], y[present], style, label=label, markersize=3, **look)


def _smooth(values: Any) -> Any:
    """Centred mean over a twentieth of the steps; a step without a loss does not count."""
    if values is None:
        return None
    window = np.ones(max(1, len(values) // 20))
    present = np.isfinite(values)
    total = np.convolve(np.where(present, values, 0.0), window)
    count = np.convolve(present.astype(float), window)
    middle = slice((len(window) - 1) // 2, (len(window) - 1) // 2 + len(values))
    return total[middle] / np.where(count[middle] > 0, count[middle], np.nan)
