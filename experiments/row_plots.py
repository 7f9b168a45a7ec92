"""The figures of a comparison, after the paper's Figs. 3, 4 and A3, where matplotlib is there."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgprune.agents.registry import AGENTS
from pgprune.experiments.rows import Row, columns_of, nearest_rate, rates_of, rows_of
from pgprune.runs.learned_mask import LearnedMask
from pgprune.utils.figures import heat_map, legend, plain_ticks, save_figure
from pgprune.utils.jsonl import Record

_OURS, _GREY = "#111111", "#888888"
_MARKS = "osD^v<>PX*"
_FINE, _LAYERS = "heads+channels", "layers"

Distances = dict[tuple[str, str], npt.NDArray[np.float64]]
"""Normalised Hamming distances by layer, (layers,), of pairs of methods."""


def plot_all(output: Path, every: Sequence[Record], at_rate: float | None = None) -> list[Path]:
    """Draws everything that there are records of, into ``plots``.

    Args:
        output: the comparison's directory.
        every: its records, failures included.
        at_rate: prune rate of the Hamming distances; None is 0.3 or the nearest.

    Returns:
        The files that were drawn: none without matplotlib.

    Raises:
        PruningError: a file cannot be written, or a mask is damaged.
    """
    records = [record for record in every if "error" not in record]
    rows, drawn = rows_of(records), []
    for name, granularity in (("channels-heads", _FINE), ("layers", _LAYERS)):
        # Fine units and whole layers have figures of their own, as in the paper's Figs. 3 and 4.
        chosen = [_part(row, granularity) for row in rows]
        chosen = [row for row in chosen if row.records]
        path = output / "plots" / f"perplexity-{name}.png"
        if chosen and plot_perplexities(path, chosen):
            drawn.append(path)
    for model in dict.fromkeys(record["model"] for record in records):
        rate = nearest_rate(rates_of(rows), at_rate)
        distances = hamming_distances(output, records, model, rate)
        path = output / "plots" / f"hamming-{model}.png"
        if distances and plot_hamming(path, distances, f"{model}, prune rate {rate:g}"):
            drawn.append(path)
    return drawn


def plot_perplexities(path: Path, rows: Sequence[Row]) -> bool:
    """Draws perplexity over parameters kept (Figs. 3 and 4 of the paper).

    One column of panels for each model and evaluation set. The first row of panels shows methods
    as they are, with weights of their own where they bring some; each further one a repair.

    Args:
        path: the PNG file.
        rows: of one granularity.

    Returns:
        Whether it was drawn.

    Raises:
        PruningError: the file cannot be written.
    """
    places = list(dict.fromkeys((model, name) for model, _, name in columns_of(rows)))
    repairs = list(dict.fromkeys(_shown(row) for row in rows))

    def draw(figure: Any) -> None:
        looks = _looks(row.method for row in rows)
        panels = figure.subplots(len(repairs), len(places), sharex="col", squeeze=False)
        for line, repair in zip(panels, repairs, strict=True):
            for panel, (model, name) in zip(line, places, strict=True):
                for row in rows:
                    if _shown(row) == repair:
                        _curve(panel, row, model, name, looks[row.method])
                _dense(panel, rows, model, name)
                panel.set_yscale("log")
                plain_ticks(panel.yaxis)
            line[0].set_ylabel(f"perplexity,\n{repair}")
        for panel, (model, name) in zip(panels[0], places, strict=True):
            panel.set_title(f"{model}\n{name}", loc="left", weight="bold", fontsize=9)
        for panel in panels[-1]:
            panel.set_xlabel("parameters kept (% of the dense model)")
        legend(figure, panels.flat, fontsize=8)

    return save_figure(path, (3.4 * len(places) + 2.2, 3.2 * len(repairs) + 0.4), draw)


def hamming_distances(
    output: Path, records: Iterable[Record], model: str, rate: float
) -> Distances:
    """Computes the share of each layer's units on which two masks differ (Appendix A.14).

    Args:
        output: the comparison's directory, which holds the masks.
        records: of the comparison; those whose runs are elsewhere do not count.
        model: its name.
        rate: the prune rate.

    Returns:
        Means over the seeds that two methods share, of all pairs of methods that prune heads and
        channels, in the order of the records.

    Raises:
        PruningError: a mask is missing or damaged.
    """
    masks: dict[str, dict[int, npt.NDArray[np.uint8]]] = defaultdict(dict)
    for record in (one for one in records if "error" not in one):
        wanted = (record["model"], record["rate"], record["granularity"]) == (model, rate, _FINE)
        if wanted and record["mask"] is not None and (output / record["run"]).exists():
            mask = LearnedMask.read(output / record["mask"]).mask.numpy()
            # Units come layer by layer, and the layers of every known family are alike.
            by_layer = mask.reshape(record["layers"], -1)  # (layers, units)
            masks[record["method"]][record["seed"]] = by_layer
    distances: Distances = {}
    for one, other in combinations(masks, 2):
        seeds = masks[one].keys() & masks[other].keys()
        pairs = [(masks[one][seed], masks[other][seed]) for seed in seeds]
        # Units of other channel blocks do not correspond.
        if pairs and all(a.shape == b.shape for a, b in pairs):
            distances[one, other] = np.mean([(a != b).mean(axis=1) for a, b in pairs], axis=0)
    return distances


def plot_hamming(path: Path, distances: Distances, title: str) -> bool:
    """Draws the distances of all pairs, and by layer those of one method from the others.

    Args:
        path: the PNG file.
        distances: of pairs of methods.
        title: what they are of.

    Returns:
        Whether it was drawn.

    Raises:
        PruningError: the file cannot be written.
    """
    names = list(dict.fromkeys(name for pair in distances for name in pair))
    # Python's sort is stable: agents come first and the order of the records stays.
    names.sort(key=lambda name: name not in AGENTS)
    reference, *others = names
    layers = len(next(iter(distances.values())))

    def draw(figure: Any) -> None:
        left, right = figure.subfigures(1, 2, width_ratios=(1.35, 1))
        _heat_map(left, names, distances)
        panels = right.subplots(len(others), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for panel, other in zip(panels, others, strict=True):
            found = _between(distances, reference, other)
            if found is not None:
                panel.bar(np.arange(layers), 100 * found, color=_GREY, width=0.8)
            panel.set_title(other, loc="left", fontsize=8, pad=2)
            panel.tick_params(labelsize=7)
            panel.grid(axis="x", visible=False)
        panels[-1].set_xlabel("layer")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
        right.suptitle(f"{reference} from the others, by layer (%)", fontsize=9)
        figure.suptitle(f"Hamming distance of masks: {title}", x=0.01, ha="left", weight="bold")

    size = 0.5 * len(names)
    return save_figure(path, (max(8.0, 1.6 * size + 5.0), max(3.6, size + 2.0)), draw)


def _heat_map(figure: Any, names: Sequence[str], distances: Distances) -> None:
    """Draws the mean over layers of each pair, in percent, written into the fields."""
    table = np.zeros((len(names), len(names)))
    for (i, one), (j, other) in product(enumerate(names), repeat=2):
        if i != j:
            found = _between(distances, one, other)
            table[i, j] = np.nan if found is None else 100 * found.mean()
    panel = figure.subplots()
    top = float(np.nanmax(table)) or 1.0
    heat_map(panel, table, names, "Blues", (0, 1.2 * top))
    for i, j in zip(*np.nonzero(np.isfinite(table)), strict=True):
        color = "white" if table[i, j] > 0.8 * top else "black"
        panel.text(j, i, f"{table[i, j]:.0f}", ha="center", va="center", color=color, fontsize=8)
    panel.tick_params(labelsize=8)
    figure.suptitle("mean over layers (%)", fontsize=9)


def _between(distances: Distances, one: str, other: str) -> npt.NDArray[np.float64] | None:
    return distances.get((one, other), distances.get((other, one)))


def _part(row: Row, granularity: str) -> Row:
    """Returns a row's records of one granularity."""
    own = [record for record in row.records if record["granularity"] == granularity]
    return Row(row.method, row.repair, own)


def _shown(row: Row) -> str:
    return "as the method leaves it" if row.repair in ("none", "own") else f"with {row.repair}"


def _looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Chooses a color and a marker for each method; agents are black and on top."""
    from matplotlib import colormaps

    table = colormaps["tab20"].colors  # type: ignore[attr-defined]
    colors = iter(table[::2] + table[1::2])  # strong ones first
    styles = iter(("-", "--", ":", "-."))
    looks: dict[str, dict[str, Any]] = {}
    for number, method in enumerate(dict.fromkeys(methods)):
        if method.partition(":")[0] in AGENTS:
            look = {"color": _OURS, "linestyle": next(styles, "-"), "linewidth": 2, "zorder": 3}
        else:
            look = {"color": next(colors, _GREY), "linewidth": 1.2, "zorder": 2}
        looks[method] = look | {"marker": _MARKS[number % len(_MARKS)], "markersize": 4}
    return looks


def _curve(panel: Any, row: Row, model: str, name: str, look: Mapping[str, Any]) -> None:
    """Draws a row's mean perplexities of a model over the share of parameters kept."""
    points = []
    for rate in sorted({record["rate"] for record in row.records}):
        values = row.perplexities((model, rate, name))
        if values and all(map(math.isfinite, values)):
            shares = [
                100 * record["parameters"]["pruned"] / record["parameters"]["dense"]
                for record in row.of(model, rate)
            ]
            points.append((statistics.fmean(shares), statistics.geometric_mean(values)))
    if points:
        panel.plot(*zip(*points, strict=True), label=row.method, **look)


def _dense(panel: Any, rows: Sequence[Row], model: str, name: str) -> None:
    """Draws a line at the dense model's perplexity."""
    # The dense perplexity is the same in all records of a model.
    found = [r["dense"][name] for row in rows for r in row.records if r["model"] == model]
    panel.axhline(found[0], color=_GREY, linestyle="--", linewidth=1, label="dense")
