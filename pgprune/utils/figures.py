"""Draws figures and writes them as PNG; without matplotlib it logs a note instead."""

import io
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pgprune.utils.files import make_folder, saving, write_file
from pgprune.utils.progress import phase

LEARNED, INITIAL, BEST, GREY = "#1f5fa8", "#f0a04b", "#2a9d57", "#888888"

_log = logging.getLogger(__name__)

_STYLE: Any = {  # matplotlib spells out every key in its types
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "font.size": 10,
    "legend.frameon": False,
}


def save_figure(path: Path, size: tuple[float, float], draw: Callable[[Any], object]) -> bool:
    """Draws a figure of a size in inches and writes a PNG; False without matplotlib.

    Raises:
        PruningError: the file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        _log.warning("no %s: it needs pip install 'pgprune[plots]'", path.name)
        return False
    with rc_context(_STYLE), phase(f"drawing {path.name}"):  # restores the global style
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        content = png(figure)  # in memory, so that the file is complete or absent
    with saving(path):
        make_folder(path.parent)
        write_file(path, content)
    return True


def png(figure: Any) -> bytes:
    """Returns a figure of matplotlib as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def plain_ticks(axis: Any) -> None:
    """Gives a logarithmic axis numbers such as 20 and 50 in place of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())  # no labels between


def legend(figure: Any, panels: Iterable[Any], **style: Any) -> None:
    """Draws one legend, at the right, of what the panels show."""
    found = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(found.values(), found.keys(), loc="outside right upper", **style)


def heat_map(
    panel: Any, table: Any, names: Sequence[str], colors: str, limits: tuple[float, float]
) -> None:
    """Draws a table (names, names) in the colors of a map between two limits; NaN is left empty."""
    panel.imshow(table, cmap=colors, vmin=limits[0], vmax=limits[1])
    panel.set_xticks(range(len(names)), names, rotation=45, ha="right")
    panel.set_yticks(range(len(names)), names)
    panel.grid(visible=False)
