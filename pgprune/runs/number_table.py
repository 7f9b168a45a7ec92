"""Tables of names and numbers that fit the terminal without a cut head or number."""

import re
from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgprune.errors import printable

_NAME = 20  # columns that names need at least, before they fold

_LONGEST = 40  # columns of a head without a place to break

_HEAD, _WHOLE = 12, 1000  # columns of a head that is broken, and of one that is not

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
    """Prints names and numbers; where it is too wide, the table has broken heads, or is turned.

    Where that is still too wide, it becomes several tables.

    Args:
        head: names of the columns.
        rows: cells; no markup.
        console: where to.
        names: columns of names, which come first; all others are numbers.
        bold: indices of rows to emphasise.
        apart: last rows that stand apart.
    """
    head, rows = list(map(printable, head)), [list(map(printable, row)) for row in rows]
    columns = [" ".join(filter(None, row[:names])) for row in rows]
    turned = [[title, *(row[j] for row in rows)] for j, title in enumerate(head) if j >= names]
    tables = [
        _table(head, rows, names, _WHOLE, bold=bold, apart=apart),
        _table(head, rows, names, _HEAD, bold=bold, apart=apart),
        _table(head, rows, names, 0, bold=bold, apart=apart),
        _table([head[0], *columns], turned, 1, _HEAD, bold_columns={1 + i for i in bold}),
    ]
    fitting = [table for table in tables if _least_width(table) <= console.width]
    if fitting:
        console.print(fitting[0])
        return
    for few in range(len(head) - names, 0, -1):  # columns of numbers in each of several tables
        parts = []
        for start in range(names, len(head), few):
            some = [[*row[:names], *row[start : start + few]] for row in [head, *rows]]
            parts.append(_table(some[0], some[1:], names, 0, bold=bold, apart=apart))
        if few == 1 or max(map(_least_width, parts)) <= console.width:
            console.print(*parts)
            return


def number_table(head: Sequence[str], rows: Rows) -> Table:
    """Makes an empty table for a column of names, which may fold, and columns of numbers.

    Numbers are never cut or folded; heads are broken at spaces.

    Args:
        head: names of the columns.
        rows: the cells to come, from which the columns get their widths.
    """
    heads = [
        printable(name).replace(" ", "\n" if place else " ") for place, name in enumerate(head)
    ]
    return _empty(heads, rows, 1)


def broken(head: str, width: int) -> str:
    """Breaks a head into lines at spaces, and after hyphens, underscores and slashes.

    Lines are as long as ``width`` and the longest part allow, but break elsewhere only in a part of
    more than ``_LONGEST`` columns, which a terminal would cut.
    """
    lines = [""]
    parts = [part for part in re.findall(rf"[^\s/_-]{{0,{_LONGEST}}}[\s/_-]?", head) if part]
    width = max(width, *(len(part.rstrip()) for part in parts)) if parts else width
    for part in parts:
        if lines[-1] and len((lines[-1] + part).rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _table(
    head: Sequence[str],
    rows: Rows,
    names: int,
    room: int,
    *,
    bold: Collection[int] = (),
    apart: int = 0,
    bold_columns: Collection[int] = (),
) -> Table:
    """Makes a table, with heads broken to the width of their numbers or to ``room`` if more."""
    heads = list(head[:names])
    for index, name in enumerate(head[names:], start=names):
        heads.append(broken(name, max(room, *(len(row[index]) for row in rows), 0)))
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
            longest = max(len(word) for cell in cells for word in cell.split() or [""])
            width = min(longest, _NAME)
            table.add_column(Text(name), overflow="fold", min_width=width)
            continue
        widest = max((len(row[index]) for row in rows if index < len(row)), default=0)
        width = max(widest, *map(len, name.split("\n")))
        table.add_column(Text(name), justify="right", min_width=width, no_wrap=True)
    return table


def _least_width(table: Table) -> int:
    """Returns the width of a table whose names are folded as far as they may."""
    widths = [column.min_width or 0 for column in table.columns]
    return sum(widths) + 3 * (len(widths) - 1) + 2  # a space on both sides of what divides columns
