"""Reads instructions with responses.

They are the rows of one ``.json``, ``.jsonl`` or ``.parquet`` file or of one data set of the hub,
with the fields of Alpaca: ``instruction``, ``output`` and, where there is one, ``input``; a range
of rows may follow, ``alpaca.json[:4000]``. Anything else is plain text, as in
``pgprune.data.documents``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pgprune.data.rows import BROKEN, check_length, hub_rows, jsonl_rows, parquet_rows
from pgprune.data.sources import Item, items, text_format
from pgprune.errors import PruningError, first_line
from pgprune.utils.jsonl import parse_json


@dataclass(frozen=True)
class Example:
    """One text to learn.

    Attributes:
        prompt: what comes before the response; empty for plain text.
        response: the rest.
    """

    prompt: str
    response: str


def prompt_of(instruction: str, given: str = "") -> str:
    """Formats an instruction and what is given with it, if anything, as the model reads them."""
    parts = [f"Task: {instruction.strip()}", f"Given: {given.strip()}", "Answer:\n"]
    return "\n\n".join(part for part in parts if part != "Given: ")


def read_instructions(source: str) -> Iterable[Example] | None:
    """Opens a source of instructions.

    Returns:
        Examples, as a list for a file and as a stream for a data set; None where the source is
        plain text, which is not opened then.

    Raises:
        PruningError: the source cannot be read, or it is empty or not what it begins as.
    """
    item, *others = items(source)
    suffix = _format(item.path)
    is_file = suffix in _FILES and not item.path.is_dir()
    # Several files are plain text; instructions come from one source.
    if others or not (is_file or item.is_hub_id):
        return None
    if is_file and not item.path.exists():
        raise PruningError(f"the training data {item.place!r} does not exist")
    # A .json file is always instructions; the others may hold plain text.
    if suffix != ".json" and not _begins_with_an_instruction(item):
        return None
    return list(_examples(item)) if is_file else _examples(item)


def _examples(item: Item) -> Iterator[Example]:
    """Yields the examples of an item's range, except those without a response."""
    empty = True
    # Rows without a response are skipped within the range, not replaced.
    for where, row in islice(_rows(item), item.start, item.stop):
        example = _example(where, row)
        if example.response.strip():
            empty = False
            yield example
    if empty:
        raise PruningError(
            f"the training data {item.text!r} is empty; give instructions that have an output"
        )


def _example(where: str, row: Any) -> Example:
    fields = row if isinstance(row, dict) else {}
    values: list[Any] = [fields.get("instruction"), fields.get("input") or ""]
    values.append(fields.get("output"))
    if not all(isinstance(value, str) for value in values):
        raise PruningError(
            f"{where} is not an instruction; each must have texts in its fields `instruction` and "
            "`output`, and may have one in `input`"
        )
    # JSON may escape half a character, which tokenizers refuse.
    whole = (value.encode("utf-8", "replace").decode() for value in values)
    instruction, given, output = (check_length(value, where) for value in whole)
    return Example(prompt_of(instruction, given), output)


def _begins_with_an_instruction(item: Item) -> bool:
    first = next(_rows(item), ("", None))[1]
    return isinstance(first, dict) and "instruction" in first


def _rows(item: Item) -> Iterator[tuple[str, Any]]:
    """Yields the rows of a file or data set, each with words for where it is."""
    read = _FILES.get(_format(item.path))
    try:
        rows = read(item.path) if read else enumerate(hub_rows(item.place), start=1)
        for number, row in rows:
            yield f"row {number} of {item.place!r}", row
    except BROKEN as error:
        raise PruningError(
            f"the training data {item.place!r} cannot be read: {first_line(error)}"
        ) from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    return enumerate(parquet_rows(path), start=1)


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        rows = parse_json(path.read_bytes())
    except ValueError as error:  # not UTF-8 or not JSON
        raise PruningError(
            f"the training data {str(path)!r} is not JSON in UTF-8: {first_line(error)}"
        ) from None
    if not isinstance(rows, list):
        raise PruningError(
            f"the training data {str(path)!r} is not a JSON list of objects; give one with the "
            "fields `instruction`, `output` and perhaps `input` in each"
        )
    return enumerate(rows, start=1)


_FILES: Mapping[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".json": _json_rows,
    ".jsonl": jsonl_rows,
    ".jsonl.gz": jsonl_rows,
    ".parquet": _parquet_rows,
}


def _format(path: Path) -> str:
    return text_format(path) or path.suffix.lower()
