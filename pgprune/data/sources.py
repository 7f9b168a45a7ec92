"""Parses a text source into items, without opening them."""

import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgprune.data.known_texts import KNOWN_TEXTS, KnownText
from pgprune.errors import PruningError
from pgprune.utils.files import user_path
from pgprune.utils.options import at_home

FORMATS = (".txt", ".jsonl", ".parquet", ".txt.gz", ".jsonl.gz")
"""Suffixes of the text files that can be read, in small or capital letters."""

_ITEM = re.compile(
    r"(?P<place>[^\[\]]+)(\[(?P<start>\d*):(?P<stop>\d*)\](:(?P<weight>[^\[\]]*))?)?"
)
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?(:[\w.+-]*){0,2}")
_DIGITS = len(str(sys.maxsize))
_DOMAINS = {"builtin": ("code", "prose"), "builtin:code": ("code",), "builtin:prose": ("prose",)}


@dataclass(frozen=True)
class Item:
    """One item of a source.

    Attributes:
        text: the whole item.
        place: the file, directory, data set or short name.
        start: first document of its range.
        stop: end of its range, None for all documents.
        weight: its share of a mix, relative to those of the other items; None without weights.
    """

    text: str
    place: str
    start: int
    stop: int | None
    weight: float | None = None

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of built-in texts; one empty name for any other place."""
        return _DOMAINS.get(self.place, ("",))

    @property
    def known(self) -> KnownText | None:
        """The text that has the place as its short name."""
        return KNOWN_TEXTS.get(self.place)

    @property
    def path(self) -> Path:
        """The place as a path."""
        return user_path(self.place)

    @property
    def is_local(self) -> bool:
        """Whether the place is a path of this machine, or has a suffix of one."""
        return _is_local(self.place)

    @property
    def is_hub_id(self) -> bool:
        """Whether the place can only be a data set of the hub."""
        return not (_has_name(self.place) or self.is_local) and bool(_HUB_ID.fullmatch(self.place))

    @property
    def name(self) -> str:
        """A short name, for tables."""
        if _has_name(self.place) or not self.is_local:
            return self.place.partition(":")[0]
        if self.path.is_dir():
            return self.path.resolve().name
        return self.path.name[: len(self.path.name) - len(text_format(self.path))]


def text_format(path: Path) -> str:
    """Returns which of ``FORMATS`` a file has by its name, or an empty text."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    found = (end for end in ("".join(suffixes), *suffixes[-1:]) if end in FORMATS)
    return next(found, "")


def items(source: str) -> list[Item]:
    """Parses the items of a source; of a mix, each ends in a colon and its weight.

    Raises:
        PruningError: an item has another form, a weight is not a number above 0, or only some
            items have one.
    """
    # What is there as a whole is one file, whose name has a comma.
    texts = [source] if _exists(source.strip()) else source.split(",")
    parsed = [_item(text) for text in map(str.strip, texts)]
    weightless = [item.text for item in parsed if item.weight is None]
    if 0 < len(weightless) < len(parsed):
        raise PruningError(
            f"the mix {source!r} has no weight for {weightless[0]!r}; give one to every part, as "
            "in a.jsonl:3,b.jsonl:1, or to none"
        )
    return parsed


def absolute_source(source: str) -> str:
    """Returns a source with the absolute paths of its files, where these can be parsed.

    Raises:
        PruningError: as ``items``.
    """
    return ",".join(_absolute(source, item) for item in items(source))


def without_weights(source: str, use: str) -> Sequence[Item]:
    """Parses the items of a source that is no mix.

    Raises:
        PruningError: as ``items``, or an item has a weight.
    """
    parsed = items(source)
    if parsed[0].weight is not None:
        raise PruningError(f"{source!r} has weights, and {use}; leave the weights out")
    return parsed


def _item(text: str) -> Item:
    if set("[]") & set(text) and _exists(text):
        return Item(text, text, 0, None)
    match = _ITEM.fullmatch(text)
    if not match:
        raise PruningError(
            f"the text source {text!r} is not understood; give `builtin`, `c4`, `wikitext2`, a "
            "file, or a data set as name:config:split, with a range of documents as [start:stop] "
            "if wanted"
        )
    place, weight, start, stop = match["place"], match["weight"], match["start"], match["stop"]
    if start is None:  # what follows a range can only be a weight
        place, weight = _split_weight(place)
    number = None if weight is None else _number(weight, place)
    return Item(text, place, _place(start or "0"), _place(stop) if stop else None, number)


def _place(digits: str) -> int:
    """Returns a place in the order of documents; one that no text reaches stands for its end."""
    return int(digits) if len(digits) < _DIGITS else sys.maxsize


def _absolute(source: str, item: Item) -> str:
    path = str(item.path.absolute())
    if _has_name(item.place) or not item.path.exists():
        return item.text
    if set(",[]") & set(path) and item.place != source.strip():
        return item.text  # which could not be parsed again
    return path + item.text.removeprefix(item.place)


def _split_weight(text: str) -> tuple[str, str | None]:
    """Splits a place from its weight, where the place is complete without its last colon."""
    place, colon, weight = text.rpartition(":")
    if not colon or text in _DOMAINS or user_path(text).exists():
        return text, None
    # All of name:config:split comes before a weight, since a config may be a number.
    whole = _has_name(place) or _is_local(place) or place.count(":") == 2
    return (place, weight) if whole else (text, None)


def _number(weight: str, place: str) -> float:
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise PruningError(
            f"{weight!r} is not a weight of {place!r} in a mix; give a number above 0, as in "
            f"{place}:3"
        )
    return number


def _has_name(place: str) -> bool:
    return place in _DOMAINS or place in KNOWN_TEXTS


def _exists(text: str) -> bool:
    """Whether a text is the path of something, also if it may be too long or odd for one."""
    try:
        return os.path.exists(at_home(text))
    except PruningError:  # an unknown home
        return False


def _is_local(place: str) -> bool:
    path = user_path(place)
    return path.exists() or bool(text_format(path))
