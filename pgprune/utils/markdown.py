"""Tables in Markdown pages, and the places in a page where a command puts them."""

import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from pgprune.errors import PruningError
from pgprune.utils.files import read_text, write_file


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of cells under the names of its columns."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, or a dash."""
    if not values:
        return "–"
    mean = statistics.fmean(values)
    if not math.isfinite(mean):
        return "∞"
    digits = 3 if mean < 10 else 2 if mean < 1000 else 0
    deviation = f" ± {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else ""
    return f"{mean:,.{digits}f}{deviation}"


def has_place(page: str, marker: str) -> bool:
    """Whether a page has a line ``<!-- marker -->`` with a line ``<!-- end -->`` after it."""
    return _place(marker).search(page) is not None


def renew(page: str, marker: str, text: str) -> str:
    """The page with other text in the place of a marker, if it has one."""
    return _place(marker).sub(lambda marks: f"{marks[1]}{text}{marks[2]}", page)


def check_page(page: Path, marker: str) -> None:
    """Makes sure that a page has a place for what a command puts there.

    Raises:
        PruningError: there is no such page, or no such place in it.
    """
    if not page.is_file():
        raise PruningError(f"there is no page {page}; give a Markdown file to --into")
    if not has_place(read_text(page), marker):
        raise PruningError(
            f"{page} has no line <!-- {marker} --> with a line <!-- end --> after it; write both "
            "where they belong"
        )


def renew_page(page: Path, marker: str, text: str) -> None:
    """Writes a page anew with other text in the place of a marker.

    Raises:
        OSError: the disk is full or refuses.
        PruningError: the page cannot be read.
    """
    write_file(page, renew(read_text(page), marker, text).encode())


def _place(marker: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {re.escape(marker)} -->\n).*?(<!-- end -->)", re.DOTALL)
