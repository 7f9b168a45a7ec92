"""Reads the data to finetune on: instructions with responses, or plain text, as packed windows.

Instructions are the rows of one ``.json``, ``.jsonl`` or ``.parquet`` file or of one data set of
the hub, with the fields of Alpaca: ``instruction``, ``output`` and, where there is one, ``input``;
a range of rows may follow, ``alpaca.json[:4000]``. Anything else is plain text, as in
``pgprune.data.documents``. Examples are joined in a random order and cut into windows of equal
length, so that no token of a window is padding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pgprune.data.documents import calibration_parts
from pgprune.data.rows import BROKEN, check_length, hub_rows, jsonl_rows, parquet_rows
from pgprune.data.sources import Item, items, text_format
from pgprune.data.tokens import Ids, encode, window_start
from pgprune.data.windows import interleave
from pgprune.errors import PruningError, first_line
from pgprune.utils.jsonl import parse_json
from pgprune.utils.options import Config, option

Trained = npt.NDArray[np.bool_]
"""Which tokens of a text are trained, (n,)."""


@dataclass(frozen=True)
class TrainingDataConfig(Config):
    """Data: what the model is finetuned on."""

    data: str | None = option(
        None,
        "Alpaca-style instructions (file or hub data set) or text as --calibration",
        unset="the run's calibration text",
        metavar="DATA",
    )
    samples: int = option(4000, "most windows to train on", minimum=1)
    sequence_length: int = option(1024, "tokens per window, at most the model's context", minimum=2)
    train_on: str = option(
        "all",
        "tokens that the loss counts: all, or those of responses",
        choices=["all", "response"],
    )


@dataclass(frozen=True)
class Example:
    """One text to learn.

    Attributes:
        prompt: what comes before the response; empty for plain text.
        response: the rest.
    """

    prompt: str
    response: str


@dataclass(frozen=True)
class TrainingWindows:
    """Windows of token ids.

    Attributes:
        ids: (N, T) int64 on the CPU.
        trained: (N, T) bool, the tokens whose prediction is learned.
        kind: ``instructions`` or ``text``.
    """

    ids: Tensor
    trained: Tensor
    kind: str


def training_windows(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    samples: int,
    seed: int = 0,
    train_on: str = "all",
) -> TrainingWindows:
    """Reads the data and packs it.

    Each example begins as the tokenizer begins a text, and each response ends with the tokenizer's
    end of text, if it has one. What is in memory is shuffled; a stream is taken as it comes.

    Args:
        source: as the module describes.
        tokenizer: of the model.
        sequence_length: tokens of a window, T.
        samples: windows, at most; the data may have fewer.
        seed: of the order of the examples.
        train_on: ``all`` tokens or those of the ``response`` only.

    Raises:
        PruningError: the data cannot be read, is empty or shorter than one window, or has no
            responses to train on alone.
    """
    found = read_instructions(source)
    if found is None and train_on == "response":
        raise PruningError(
            f"train_on response needs instructions, and {source!r} is plain text; choose train_on "
            "all, or give instructions as data"
        )
    order, start = np.random.default_rng(seed), window_start(tokenizer)
    windows_of = partial(_windows, length=sequence_length, start=start)
    if found is None:
        # Of a mix, windows are taken by weight until one of its texts ends.
        parts = calibration_parts(source)
        texts = (_encode_text(_shuffled(part.documents, order), tokenizer) for part in parts)
        windows = interleave(list(map(windows_of, texts)), [part.weight for part in parts])
    else:
        windows = windows_of(_encode_examples(_shuffled(found, order), tokenizer, train_on))
    # Nothing predicts the first token of a window, so alone it gives nothing to learn.
    useful = (window for window in windows if window[1][1:].any())
    kept = list(islice(useful, samples))
    if not kept:
        raise PruningError(
            f"the training data {source!r} is shorter than one window of {sequence_length:,} "
            "tokens; give more of it, or a smaller sequence_length"
        )
    ids, trained = (torch.from_numpy(np.stack(rows)) for rows in zip(*kept, strict=True))  # (N, T)
    return TrainingWindows(ids.long(), trained, "text" if found is None else "instructions")


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


def _shuffled(
    values: Iterable[Any] | Callable[[], Iterable[Any]], order: np.random.Generator
) -> Iterable[Any]:
    """Orders a list at random; leaves a stream as it is."""
    if callable(values):
        return values()
    if not isinstance(values, list):
        return values
    return (values[index] for index in order.permutation(len(values)))


def _encode_text(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Ids, Trained]]:
    """Tokenises documents, all of whose tokens are trained."""
    return ((ids, np.ones(len(ids), bool)) for ids in encode(tokenizer, texts))


def _encode_examples(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, train_on: str
) -> Iterator[tuple[Ids, Trained]]:
    """Tokenises examples: the ids of each, (n,), and which of them are trained, (n,)."""
    end = tokenizer.eos_token_id
    examples = iter(examples)
    # Blocks keep a stream lazy, and a fast tokenizer busy.
    while some := list(islice(examples, 256)):
        texts = encode(tokenizer, (example.prompt + example.response for example in some))
        prompts = encode(tokenizer, (example.prompt for example in some))
        for ids in texts:
            if end is not None and ids[-1:] != [end]:
                ids = np.append(ids, np.int32(end))
            # Text and prompt are tokenised apart: a token that joins both belongs to the response.
            trained = np.ones(len(ids), bool)
            if train_on == "response":
                trained[: _common(ids, next(prompts))] = False
            yield ids, trained


def _windows(
    parts: Iterable[tuple[Ids, Trained]], length: int, start: int | None
) -> Iterator[tuple[Ids, Trained]]:
    """Joins parts and cuts them into windows, (length,) each; the remainder is lost."""
    first = np.array([] if start is None else [start], np.int32)
    ids, trained, size = np.empty(0, np.int32), np.empty(0, bool), length - len(first)
    for more, which in parts:
        ids, trained = np.append(ids, more), np.append(trained, which)
        # Examples are longer or shorter than a window; none is padded.
        while len(ids) >= size:
            yield np.append(first, ids[:size]), np.append(first < 0, trained[:size])
            ids, trained = ids[size:], trained[size:]


def _common(first: Ids, second: Ids) -> int:
    """Counts the tokens that two texts begin with alike."""
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length
