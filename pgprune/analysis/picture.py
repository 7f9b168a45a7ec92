"""Draws how much the loss rises without parts of single layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgprune.analysis.sensitivity import KEPT, Sensitivity
from pgprune.utils.figures import save_figure

_LOWEST = 1e-3  # nats: below it a rise is noise on a few windows
_WRITTEN = 48  # layers, above which there is no room for numbers


def plot_sensitivity(path: Path, found: Sequence[Sensitivity], name: str) -> bool:
    """Draws a heat map of kinds and kept shares over layers, in colors of a logarithmic scale.

    Args:
        path: the PNG file.
        found: of every group.
        name: of the model.

    Returns:
        Whether it was drawn: not without matplotlib.

    Raises:
        PruningError: the file cannot be written.
    """
    kinds = list(dict.fromkeys(item.group.kind for item in found))
    layers = 1 + max(item.group.layer for item in found)
    tables = {kind: np.full((len(KEPT), layers), np.nan) for kind in kinds}
    for item in found:
        tables[item.group.kind][:, item.group.layer] = item.rises
    rises = [rise for item in found for rise in item.rises if np.isfinite(rise)]
    highest = max([10 * _LOWEST, *rises])

    def draw(figure: Any) -> None:
        from matplotlib.colors import LogNorm

        panels = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
        norm = LogNorm(_LOWEST, highest, clip=True)
        for panel, (kind, table) in zip(panels, tables.items(), strict=True):
            shown = np.where(np.isposinf(table), highest, table)
            image = panel.imshow(shown, cmap="Blues", norm=norm, aspect="auto")
            panel.set_yticks(range(len(KEPT)), [f"{share:.0%}" for share in KEPT])
            panel.set_ylabel(f"{kind} kept")
            panel.grid(visible=False)
            if layers <= _WRITTEN:
                _write(panel, table, norm)
        panels[-1].set_xlabel("layer")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(image, ax=list(panels), label="rise of the loss\n(nats a token)", pad=0.01)
        figure.suptitle(f"Sensitivity of the layers of {name}", x=0.01, ha="left", weight="bold")

    return save_figure(path, (max(7.0, 0.42 * layers + 2.4), 1.1 + 1.5 * len(kinds)), draw)


def _write(panel: Any, table: Any, norm: Any) -> None:
    """Writes the numbers into the cells, in a color that can be read on theirs."""
    for (row, layer), rise in np.ndenumerate(table):
        if np.isfinite(rise):
            text = f"{rise:.3f}" if rise < 0.01 else f"{rise:.2f}"
            text = "0" if rise < _LOWEST else text.removeprefix("0")
            color = "white" if norm(max(rise, _LOWEST)) > 0.5 else "black"
            panel.text(layer, row, text, ha="center", va="center", fontsize=6.5, color=color)
