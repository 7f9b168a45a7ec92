"""Tables of names and numbers that fit the terminal without a cut head or number."""

import re
from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_NAME = 20  # columns that names need at least, before they fold
_HEAD = 12  # columns of a head that is broken

Rows = Sequence[Sequence[str]]


def print_table(
    head: Sequence[str],
    rows: Rows,
    console: Console,
    *,
    names: int = 1,
    bold: Collection[int] = (),
    apart: int = 0,
) -> None:
    """Prints names and numbers; heads are broken, or the table is turned, where it is too wide.

    Args:
        head: names of the columns.
        rows: cells; no markup.
        console: where to.
        names: columns of names, which come first; all others are numbers.
        bold: indices of rows to emphasise.
        apart: last rows that stand apart.
    """
    columns = [" ".join(filter(None, row[:names])) for row in rows]
    turned = [[title, *(row[j] for row in rows)] for j, title in enumerate(head) if j >= names]
    tables = [
        _table(head, rows, names, whole=True, bold=bold, apart=apart),
        _table(head, rows, names, whole=False, bold=bold, apart=apart),
        _table([head[0], *columns], turned, 1, whole=False, bold_columns={1 + i for i in bold}),
    ]
    widths = [_least_width(table, console) for table in tables]
    fitting = [width <= console.width for width in widths]
    console.print(tables[fitting.index(True) if any(fitting) else widths.index(min(widths))])


def number_table(head: Sequence[str], rows: Rows) -> Table:
    """Makes an empty table for a column of names, which may fold, and columns of numbers.

    Numbers are never cut or folded; heads are broken at spaces.

    Args:
        head: names of the columns.
        rows: the cells to come, from which the columns get their widths.
    """
    return _empty([head[0], *(name.replace(" ", "\n") for name in head[1:])], rows, 1)


def broken(head: str, width: int = _HEAD) -> str:
    """Breaks a head into lines at spaces, and after hyphens, underscores and slashes.

    Lines are as long as ``width`` allows, but never break elsewhere.
    """
    lines = [""]
    for part in filter(None, re.findall(r"[^\s/_-]*[\s/_-]?", head)):
        if lines[-1] and len((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _table(
    head: Sequence[str],
    rows: Rows,
    names: int,
    *,
    whole: bool,
    bold: Collection[int] = (),
    apart: int = 0,
    bold_columns: Collection[int] = (),
) -> Table:
    """Makes a table, with heads broken to the width of their columns unless they stay whole."""
    heads = list(head[:names])
    for index, name in enumerate(head[names:], start=names):
        width = max(_HEAD, *(len(row[index]) for row in rows)) if rows else _HEAD
        heads.append(name if whole else broken(name, width))
    table = _empty(heads, rows, names)
    for number, row in enumerate(rows):
        if apart and number == len(rows) - apart:
            table.add_section()
        cells = (Text(cell, "bold" if i in bold_columns else "") for i, cell in enumerate(row))
        table.add_row(*cells, style="bold" if number in bold else None)
    return table


def _empty(heads: Sequence[str], rows: Rows, names: int) -> Table:
    """Makes the columns: names may fold, the others are as wide as their heads and numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(heads):
        if index < names:
            cells = [name, *(row[index] for row in rows if index < len(row))]
            width = min(max(map(len, cells)), _NAME)
            table.add_column(Text(name), overflow="fold", min_width=width)
            continue
        widest = max((len(row[index]) for row in rows if index < len(row)), default=0)
        width = max(widest, *map(len, name.split("\n")))
        table.add_column(Text(name), justify="right", min_width=width, no_wrap=True)
    return table


def _least_width(table: Table, console: Console) -> int:
    """Returns the width of a table whose names are folded as far as they may."""
    widths = [column.min_width or 0 for column in table.columns]
    return sum(widths) + 2 * (len(widths) - 1) + 2
