"""Draws the figures of a run. Without matplotlib there is a note and no figure."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgprune.masking.units import Group
from pgprune.runs.progress import read_progress
from pgprune.utils.figures import (
    BEST,
    GREY,
    INITIAL,
    LEARNED,
    legend,
    plain_ticks,
    save_figure,
)


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
        # Mask evaluations compare between agents; steps of different sizes do not.
        x, label = columns["time/timesteps"], "mask evaluations"

    def draw(figure: Any) -> None:
        axes = figure.add_subplot(xlabel=label, ylabel="cross-entropy (nats a token)")
        _line(axes, x, columns.get("rollout/loss"), "o", "sampled masks", color=LEARNED, alpha=0.2)
        _line(axes, x, columns.get("train/baseline"), "-", "baseline", color=GREY, linewidth=0.8)
        smooth = smooth_curve(columns.get("rollout/loss"))
        _line(axes, x, smooth, "-", "sampled masks, smoothed", color=LEARNED, linewidth=2)
        rounded, best = columns.get("validation/loss"), columns.get("validation/best_loss")
        _line(axes, x, rounded, "o-", "rounded mask on the validation batch", color=INITIAL)
        _line(axes, x, best, "--", "best rounded mask", color=BEST, linewidth=1.5)
        axes.set_title("Learning curve", loc="left", weight="bold")
        if axes.lines:
            axes.legend(loc="upper right")

    return save_figure(path, (7.0, 4.2), draw)


def plot_kept_shares(
    path: Path,
    groups: Sequence[Group],
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
    bars = [(np.asarray(learned, dtype=float), LEARNED, "learned")]
    if initial is not None:
        # The initial mask is the first bar: it is what training starts from.
        bars.insert(0, (np.asarray(initial, dtype=float), INITIAL, "initial"))
    # The bars of a layer share four fifths of its place; the rest separates layers.
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
                panel.axhline(100 * target, color=GREY, linestyle="--", linewidth=1, label="target")
            panel.set(ylim=(0, 105), ylabel=f"{kind} kept (%)")
            panel.grid(axis="x", visible=False)
        panels[-1].set(xlabel="layer", xlim=(-0.6, layers - 0.4))
        # Layers are whole numbers, between which there is nothing to mark.
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
        figure.suptitle("Kept share by layer", x=0.01, ha="left", weight="bold")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper right", ncols=len(labels))

    return save_figure(path, (max(6.0, 0.22 * layers + 2), 1.2 + 2.1 * len(kinds)), draw)


def plot_candidates(path: Path, results: Mapping[str, Any]) -> bool:
    """Draws the perplexity of models of several sizes over their parameters, memory and time.

    Args:
        path: the PNG file.
        results: the content of a sweep's sweep.json. What it says of ``initial``, the one-shot mask
            of a rate, is drawn too.

    Returns:
        Whether it was drawn: not without matplotlib.

    Raises:
        PruningError: the file cannot be written.
    """
    dense, runs = results["dense"], list(results["runs"].values())
    sizes = {
        "parameters": ("parameters (million)", 1e6),
        "memory_bytes": ("weights and cache (MB)", 1e6),
        "time": ("time (dense model: 1)", 1.0),
    }
    present = [name for name in sizes if all(name in run for run in runs)]
    sets = list(dense["perplexity"])

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(sets), len(present), sharex="col", sharey="row", squeeze=False)
        for (row, text), (column, name) in product(enumerate(sets), enumerate(present)):
            panel, (label, scale) = panels[row, column], sizes[name]
            start = dense.get(name, 1.0) / scale, dense["perplexity"][text]
            one_shot = [(run["initial"].get(name, math.nan), run, "initial") for run in runs]
            shipped = [(run[name], run, "pruned") for run in runs]
            for line, color, title in (
                (one_shot, INITIAL, "one-shot"),
                (shipped, LEARNED, "candidates"),
            ):
                points = [(size / scale, run["perplexity"][kind][text]) for size, run, kind in line]
                x, y = np.array([start, *points], dtype=float).T  # None becomes NaN
                panel.plot(x, y, "o-", color=color, label=title, markersize=4)
            panel.plot(*start, "D", color=GREY, label="dense", markersize=6)
            panel.set_yscale("log")
            plain_ticks(panel.yaxis)
            if row == len(sets) - 1:
                panel.set_xlabel(label)
            if column == 0:
                panel.set_ylabel(f"perplexity, {text}")
        figure.suptitle("Candidates", x=0.01, ha="left", weight="bold")
        legend(figure, panels.flat)

    return save_figure(path, (2.0 + 2.9 * len(present), 1.0 + 2.3 * len(sets)), draw)


def _line(axes: Any, x: Any, y: Any, style: str, label: str, **look: Any) -> None:
    """Plots a column where it has values."""
    if y is not None and np.isfinite(y).any():
        present = np.isfinite(y)
        axes.plot(x[present], y[present], style, label=label, markersize=3, **look)


def smooth_curve(values: Any) -> Any:
    """Averages over a centred twentieth of the steps; steps without a loss do not count."""
    if values is None:
        return None
    # A mean over present values: two convolutions, of sums and of counts.
    window = np.ones(max(1, len(values) // 20))
    present = np.isfinite(values)
    # A nan would spread over the whole window.
    total = np.convolve(np.where(present, values, 0.0), window)
    count = np.convolve(present.astype(float), window)
    middle = slice((len(window) - 1) // 2, (len(window) - 1) // 2 + len(values))
    return total[middle] / np.where(count[middle] > 0, count[middle], np.nan)
