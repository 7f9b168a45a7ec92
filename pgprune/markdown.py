"""Tables in Markdown pages, and the places in a page where a command puts them."""

import re
from collections.abc import Sequence


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of cells under the names of its columns."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def has_place(page: str, marker: str) -> bool:
    """Whether a page has a line ``<!-- marker -->`` with a line ``<!-- end -->`` after it."""
    return _place(marker).search(page) is not None


def renew(page: str, marker: str, text: str) -> str:
    """The page with other text in the place of a marker, if it has one."""
    return _place(marker).sub(lambda marks: f"{marks[1]}{text}{marks[2]}", page)


def _place(marker: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {re.escape(marker)} -->\n).*?(<!-- end -->)", re.DOTALL)
