"""The figures of a benchmark of agents, where matplotlib is there."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgprune.experiments.scores import GRID, Scores, curve_at
from pgprune.experiments.statistics import (
    Estimate,
    estimate,
    improvement,
    intervals,
    performance_profile,
)
from pgprune.utils.figures import heat_map, legend, plain_ticks, save_figure

_BEST, _GREY = "#111111", "#888888"
_COLORS = (
    *("#1f5fa8", "#d1495b", "#2a9d57", "#e08e1b", "#7a5aa6", "#17a2b8"),
    *("#8c564b", "#e377c2", "#7f9c1f", "#5b6b7a", "#0b3d5c", "#f4a3a3"),
)
_MARKS, _LINES = "osD^vPX*<>", ("-", "--", "-.", ":")


def plot_all(scores: Scores, folder: Path) -> list[Path]:
    """Draws everything that there are records of.

    Args:
        scores: of the records.
        folder: where to.

    Returns:
        The files that were drawn: none without matplotlib.

    Raises:
        PruningError: a file cannot be written.
    """
    figures: dict[str, Callable[[Path, Scores], bool]] = {
        "learning_curves": plot_evaluations,
        "learning_curves_seconds": plot_seconds,
    }
    if scores.ranked:
        figures |= {"scores": plot_scores, "profiles": plot_profiles}
    if len(scores.ranked) > 1:
        figures["improvement"] = plot_improvement
    paths = {folder / f"{name}.png": plot for name, plot in figures.items()}
    return [path for path, plot in paths.items() if plot(path, scores)]


def plot_evaluations(path: Path, scores: Scores) -> bool:
    """Draws the loss of the answers over mask evaluations, a panel for each task.

    Args:
        path: the PNG file.
        scores: of the benchmark.

    Returns:
        Whether it was drawn.

    Raises:
        PruningError: the file cannot be written.
    """
    return _plot_curves(path, scores, "mask_evaluations", "mask evaluations")


def plot_seconds(path: Path, scores: Scores) -> bool:
    """Draws the loss of the answers over the seconds of the runs; as ``plot_evaluations``."""
    return _plot_curves(path, scores, "seconds", "seconds")


def plot_scores(path: Path, scores: Scores) -> bool:
    """Draws interquartile means of scores: final ones, and over evaluations.

    Bars and bands are 95 % bootstrap intervals; for the rest as ``plot_evaluations``.
    """

    def draw(figure: Any) -> None:
        looks = _looks(scores)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        for row, agent in enumerate(reversed(scores.ranked)):
            one, color = scores.mean(agent), looks[agent]["color"]
            left.hlines(row, one.low, one.high, color=color, linewidth=7, alpha=0.4)
            left.plot(one.value, row, "|", color=color, markersize=14, markeredgewidth=2.5)
        left.set_yticks(range(len(scores.ranked)), reversed(scores.ranked))
        left.grid(axis="y", visible=False)
        left.set(xlabel="score, interquartile mean")
        left.set_title("At the end", loc="left", weight="bold")
        lows = []
        for agent in scores.ranked:
            points = [scores.mean(agent, part) for part in GRID]
            middle, low, high = np.array(points).T  # each (GRID,)
            right.plot(100 * GRID, middle, label=agent, **looks[agent])
            right.fill_between(100 * GRID, low, high, color=looks[agent]["color"], alpha=0.08)
            lows.append(middle[0])
        _limit(right, lows, 1.0)
        right.set(xlabel="mask evaluations (% of the budget)")
        right.set_title("Over evaluations", loc="left", weight="bold")
        legend(figure, [right], handlelength=3)

    return save_figure(path, (11.0, 1.6 + 0.34 * max(8, len(scores.ranked))), draw)


def plot_profiles(path: Path, scores: Scores) -> bool:
    """Draws the share of runs above each score, with 95 % bands; as ``plot_evaluations``."""
    # Very low scores would squeeze the part where agents differ, so it starts at the 5 % quantile.
    every = np.concatenate([scores.of(agent).ravel() for agent in scores.ranked])
    thresholds = np.linspace(max(float(every.min()), float(np.quantile(every, 0.05)) - 0.1), 1, 101)

    def shares(values: Any) -> Any:
        return performance_profile(values, thresholds)

    def draw(figure: Any) -> None:
        looks = _looks(scores)
        panel = figure.subplots()
        for agent in scores.ranked:
            own = scores.of(agent)
            # Markers are shifted, so that curves that coincide can be told apart.
            look = looks[agent] | {"markevery": (5 * scores.ranked.index(agent) % 17, 17)}
            panel.plot(thresholds, shares(own), label=agent, **look)
            # Pointwise intervals; they say nothing of whole curves.
            band = intervals(shares, own)
            panel.fill_between(thresholds, *band, color=look["color"], alpha=0.07, linewidth=0)
        panel.set(xlabel="score", ylabel="share of runs above it", ylim=(-0.02, 1.02))
        panel.set_title("Performance profiles", loc="left", weight="bold")
        legend(figure, [panel], handlelength=3)

    return save_figure(path, (8.5, 4.2), draw)


def plot_improvement(path: Path, scores: Scores) -> bool:
    """Draws how probably a run of one agent beats one of another; as ``plot_evaluations``.

    Pairs whose 95 % interval contains one half are grey.
    """
    names = scores.ranked

    def compared(one: str, other: str) -> Estimate:
        return estimate(improvement, scores.of(one), scores.of(other))

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        table = np.full((len(names), len(names)), np.nan)
        for i, one in enumerate(names):
            for j, other in enumerate(names):
                if i == j:
                    continue
                found = compared(one, other)
                table[i, j] = 100 * found.value  # 50 for equal agents
                sure = not found.low <= 0.5 <= found.high
                style = {"color": "black", "weight": "bold"} if sure else {"color": _GREY}
                panel.text(j, i, f"{table[i, j]:.0f}", ha="center", va="center", **style)
        heat_map(panel, table, names, "RdBu", (-40, 140))
        panel.set_title("How often the row beats the column (%)", loc="left", weight="bold")

    size = 0.52 * len(names) + 2.2
    return save_figure(path, (max(5.0, size), max(3.6, size - 0.4)), draw)


def _plot_curves(path: Path, scores: Scores, column: str, label: str) -> bool:
    columns = min(3, len(scores.tasks))
    rows = math.ceil(len(scores.tasks) / columns)

    def draw(figure: Any) -> None:
        looks = _looks(scores)
        panels = figure.subplots(rows, columns, squeeze=False)
        for panel, task in zip(panels.flat, scores.tasks, strict=False):
            starts, lowest = [], math.inf
            for agent in looks:
                if runs := list(scores.runs(agent, task).values()):
                    x, y = (_mean(runs, name) for name in (column, "loss"))
                    panel.plot(x, y, label=agent, **looks[agent])
                    starts.append(y[0])
                    lowest = min(lowest, *y)
            _limit(panel, starts, lowest)
            if column == "seconds":
                panel.set_xscale("log")
                plain_ticks(panel.xaxis)
            panel.set_title(task, loc="left", weight="bold", fontsize=9)
        for panel in panels.flat[len(scores.tasks) :]:
            panel.remove()
        for panel in panels[:, 0]:
            panel.set_ylabel("loss of the answer\n(nats a token)")
        figure.supxlabel(label, fontsize=10)
        legend(figure, panels.flat[: len(scores.tasks)], handlelength=3)

    return save_figure(path, (3.3 * columns + 2.2, 2.9 * rows + 0.5), draw)


def _mean(runs: Sequence[Any], column: str) -> list[float]:
    """Averages runs' curves over the grid."""
    return [float(np.mean([curve_at(run, column, part) for run in runs])) for part in GRID]


def _limit(panel: Any, starts: Sequence[float], best: float) -> None:
    """Limits the panel to the losses between the worst start and the best end."""
    # Losses worse than any start would flatten all curves that matter.
    worst = max(starts, key=lambda start: abs(start - best))
    margin = 0.06 * (best - worst)
    low, high = sorted((worst - 2 * margin, best + margin))
    if low < high:
        panel.set_ylim(low, high)


def _looks(scores: Scores) -> dict[str, dict[str, Any]]:
    """Chooses color, line and marker of each agent by rank; the best is black, on top."""
    agents = [*scores.ranked, *(one for one in scores.agents if one not in scores.ranked)]
    looks: dict[str, dict[str, Any]] = {}
    for rank, agent in enumerate(agents):
        color = _COLORS[(rank - 1) % len(_COLORS)] if rank else _BEST
        look = {"color": color, "linestyle": _LINES[rank % len(_LINES)], "linewidth": 1.4}
        look |= {"marker": _MARKS[rank % len(_MARKS)], "markersize": 3.5, "markevery": 2}
        looks[agent] = look | {"zorder": 3 if rank else 4}
    return looks
