"""Draws the kept share of every layer and kind, as text or as pixels."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pgprune.masking.units import Group

BAR = 20
"""Characters of a full bar in ``ansi``."""
CELL, HEIGHT, MARGIN = 12, 64, 8
"""Pixels in ``rgb_array``: width of a layer's bar, height of a full bar, space around a panel."""

Frame = npt.NDArray[np.uint8]
_WHITE, _TRACK, _TARGET = (255, 255, 255), (230, 230, 230), (200, 30, 30)
_LOW, _HIGH = np.array([68.0, 1.0, 84.0]), np.array([53.0, 183.0, 121.0])  # viridis, 0 and 2/3


def ansi(groups: Sequence[Group], kept_shares: npt.NDArray[np.floating], target: float) -> str:
    """Draws kept shares (groups,) as a table with a bar for each layer (row) and kind (column)."""
    table = _table(groups, kept_shares)
    kinds = _kinds(groups)
    lines = [
        f"kept share (target {target:.1%})",
        "layer  " + "".join(f"{kind:<{BAR + 8}}" for kind in kinds),
    ]
    for layer in _layers(groups):
        lines.append(f"{layer:>5}  " + "".join(_bar(table.get((layer, kind))) for kind in kinds))
    return "\n".join(line.rstrip() for line in lines) + "\n"


def rgb_array(
    groups: Sequence[Group], kept_shares: npt.NDArray[np.floating], target: float
) -> Frame:
    """Draws kept shares (groups,): a panel for each kind, a bar for each layer, the target.

    A bar's height and colour (violet to green) both say how much the layer keeps.

    Returns:
        The picture, (height, width, 3).
    """
    table = _table(groups, kept_shares)
    layers = _layers(groups)
    panels = [_panel([table.get((x, kind)) for x in layers], target) for kind in _kinds(groups)]
    return np.concatenate(panels)


def _panel(shares: list[float | None], target: float) -> Frame:
    """Draws the bars of a kind, (HEIGHT + 2 MARGIN, layers * CELL + 2 MARGIN, 3)."""
    size = (HEIGHT + 2 * MARGIN, len(shares) * CELL + 2 * MARGIN, 3)
    panel = np.full(size, _WHITE, dtype=np.uint8)
    inside = panel[MARGIN:-MARGIN, MARGIN:-MARGIN]
    for position, share in enumerate(shares):
        if share is not None:
            bar = inside[:, position * CELL + 1 : (position + 1) * CELL - 1]
            bar[:] = _TRACK
            # filled from the bottom up; colours between the ends of viridis
            bar[HEIGHT - round(share * HEIGHT) :] = (_LOW + share * (_HIGH - _LOW)).round()
    # Row 0 is the top, and a target of 1 must still be inside the panel.
    inside[HEIGHT - 1 - round(target * (HEIGHT - 1))] = _TARGET
    return panel


def _bar(share: float | None) -> str:
    if share is None:  # the layer has no unit of this kind
        return " " * (BAR + 8)
    full = round(share * BAR)
    return "█" * full + "░" * (BAR - full) + f" {share:>6.1%} "


def _table(
    groups: Sequence[Group], kept_shares: npt.NDArray[np.floating]
) -> dict[tuple[int, str], float]:
    shares = kept_shares.tolist()
    return {(g.layer, g.kind): share for g, share in zip(groups, shares, strict=True)}


def _kinds(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(group.kind for group in groups))


def _layers(groups: Sequence[Group]) -> list[int]:
    return sorted({group.layer for group in groups})
