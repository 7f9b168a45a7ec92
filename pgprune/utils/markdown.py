"""Makes Markdown tables, and writes them between markers of a page."""

import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from pgprune.errors import PruningError, printable
from pgprune.utils.files import read_text, write_file


def plain(text: str) -> str:
    """Writes a name that others have chosen so that a page shows it and nothing of it is obeyed.

    No HTML, link, emphasis, code or cell of a table begins in it.
    """
    shown = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~]|(?<=\w):(?=//))", r"\\\1", shown)


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Makes a table of a header and rows of cells."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def spread(values: Sequence[float]) -> str:
    """Formats mean and sample standard deviation, or a dash without values."""
    if not values:
        return "–"
    mean = statistics.fmean(values)
    if not math.isfinite(mean):
        return "∞"
    digits = 3 if mean < 10 else 2 if mean < 1000 else 0  # about four digits
    # A single value has no deviation.
    deviation = f" ± {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else ""
    return f"{mean:,.{digits}f}{deviation}"


def has_place(page: str, marker: str) -> bool:
    """Tells if a page has a line ``<!-- marker -->`` and a line ``<!-- end -->`` after it."""
    return _place(marker).search(page) is not None


def renew(page: str, marker: str, text: str) -> str:
    """Replaces the text after a marker of a page, if it has the marker."""
    # A function, so that backslashes in the text are no escapes.
    return _place(marker).sub(lambda marks: f"{marks[1]}{text}{marks[2]}", page)


def check_page(page: Path, marker: str) -> None:
    """Checks that a page has a marker for the text of a command.

    Raises:
        PruningError: the page or the marker is missing.
    """
    if not page.is_file():
        raise PruningError(f"there is no page {page}; give a Markdown file to --into")
    if not has_place(read_text(page), marker):
        raise PruningError(
            f"{page} has no line <!-- {marker} --> with a line <!-- end --> after it; write both "
            "where they belong"
        )


def renew_page(page: Path, marker: str, text: str) -> None:
    """Replaces the text after a marker in the file of a page.

    Raises:
        OSError: the file cannot be written.
        PruningError: the page cannot be read.
    """
    write_file(page, renew(read_text(page), marker, text).encode())


def _place(marker: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {re.escape(marker)} -->\n).*?(<!-- end -->)", re.DOTALL)
