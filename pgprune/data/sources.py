"""Parses a text source into items, without opening them."""

import re
from dataclasses import dataclass
from pathlib import Path

from pgprune.errors import PruningError

FORMATS = (".txt", ".jsonl", ".parquet")
"""Suffixes of the text files that can be read."""

_ITEM = re.compile(r"(?P<place>[^\[\]]+)(\[(?P<start>\d*):(?P<stop>\d*)\])?")
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?(:[\w.+-]*){0,2}")
_DOMAINS = {"builtin": ("code", "prose"), "builtin:code": ("code",), "builtin:prose": ("prose",)}


@dataclass(frozen=True)
class Item:
    """One item of a source.

    Attributes:
        text: the whole item.
        place: the file, directory or data set.
        start: first document of its range.
        stop: end of its range, None for all documents.
    """

    text: str
    place: str
    start: int
    stop: int | None

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of built-in texts; one empty name for any other place."""
        return _DOMAINS.get(self.place, ("",))

    @property
    def path(self) -> Path:
        """The place as a path."""
        return Path(self.place).expanduser()

    @property
    def is_local(self) -> bool:
        """Whether the place is a path of this machine, or has a suffix of one."""
        return self.path.exists() or self.path.suffix in FORMATS

    @property
    def is_hub_id(self) -> bool:
        """Whether the place can only be a data set of the hub."""
        return not (self.domains[0] or self.is_local) and bool(_HUB_ID.fullmatch(self.place))

    @property
    def name(self) -> str:
        """A short name, for tables."""
        if not self.is_local:
            return self.place.partition(":")[0]
        return self.path.resolve().name if self.path.is_dir() else self.path.stem


def items(source: str) -> list[Item]:
    """Parses the items of a source.

    Raises:
        PruningError: an item has another form.
    """
    parsed = []
    for text in map(str.strip, source.split(",")):
        match = _ITEM.fullmatch(text)
        if not match:
            raise PruningError(
                f"the text source {text!r} is not understood; give `builtin`, a file, or a data "
                "set as name:config:split, with a range of documents as [start:stop] if wanted"
            )
        start, stop = match["start"], match["stop"]
        parsed.append(Item(text, match["place"], int(start or 0), int(stop) if stop else None))
    return parsed
