"""Reads zero-shot tasks from local files, as lm-eval's task configurations.

A file has one multiple-choice item a line, in one of two layouts:

    {"query": "Question: ...", "choices": ["...", "..."], "gold": 0}
    {"context_options": ["... Sarah", "... Maria"], "continuation": "...", "gold": 1}

In the first the answers differ, in the second (WinoGrande) what comes before the one continuation.
A query that begins with ``Question:`` ends in a line ``Answer:``, as in lm-eval's ARC and PIQA.
"""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgprune.data.known_texts import assets
from pgprune.data.rows import jsonl_rows
from pgprune.errors import PruningError
from pgprune.utils.files import user_path

Item = dict[str, Any]
_LAYOUTS = (("query", "choices"), ("continuation", "context_options"))  # a text, several texts
_QUESTION, _ANSWER = "Question:", "\nAnswer:"


def task_file(folder: str, task: str) -> Path:
    """Finds the file of a task: ``TASK*.jsonl`` in the folder, or the only one in ``TASK/``.

    Raises:
        PruningError: there is none, or more than one.
    """
    place, files = user_path(folder), _files(folder, task)
    if len(files) != 1:
        problem = f"has {len(files)} files" if files else "has no file"
        raise PruningError(
            f"the folder {folder!r} {problem} for the task {task!r}; put one at "
            f"{place / task}.jsonl or in {place / task}, or leave the task out of --tasks"
        )
    return files[0]


def known_task_file(task: str) -> Path | None:
    """Finds the file of a task below ``PGPRUNE_ASSETS``; None where there is none.

    Raises:
        PruningError: there is more than one.
    """
    folder = assets()
    if folder is None or not _files(str(folder / "text"), task):
        return None
    return task_file(str(folder / "text"), task)


def task_config(task: str, path: Path) -> dict[str, Any]:
    """Describes a local task to lm-eval.

    Returns:
        What lm-eval's ``ConfigurableTask`` takes as ``config``; the metrics are ``acc`` and, where
        answers differ, ``acc_norm``.

    Raises:
        PruningError: the file is not of one of the layouts.
    """
    from datasets import Dataset

    items = list(read_items(path))
    if not items:
        raise PruningError(f"the file {str(path)!r} is empty; give one with an item a line")
    # All items of a task have the layout of the first: lm-eval scores them in one way.
    several = "contexts" if "contexts" in items[0] else "answers"
    if not all(several in item for item in items):
        raise PruningError(f"the file {str(path)!r} mixes items of two layouts; split it")
    metrics = ["acc", "acc_norm"] if several == "answers" else ["acc"]

    def data(**_: Any) -> dict[str, Dataset]:
        return {"test": Dataset.from_list(items)}

    return {
        "task": task,
        "custom_dataset": data,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_choice": several,
        # Where contexts differ, lm-eval wants the right one's number instead of a text.
        "doc_to_text": "text" if several == "answers" else "gold",
        "doc_to_target": "gold" if several == "answers" else "text",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics
        ],
        "num_fewshot": 0,
    }


def _files(folder: str, task: str) -> list[Path]:
    if not task or Path(task).name != task:  # a path would leave the folder
        return []
    place, name = user_path(folder), glob.escape(task)
    return sorted([*place.glob(f"{name}*.jsonl"), *place.glob(f"{name}/*.jsonl")])


def read_items(path: Path) -> Iterator[Item]:
    """Reads the items of a file.

    Yields:
        ``text`` (what comes before all answers, or after all contexts), ``answers`` or
        ``contexts``, and ``gold``, the number of the right one.

    Raises:
        PruningError: it cannot be read, or a line is not an item.
    """
    try:
        for number, row in jsonl_rows(path):
            item = _item(row)
            if item is None:
                raise PruningError(
                    f"line {number} of {str(path)!r} is not an item of a zero-shot task; it must "
                    "have query, choices and gold, or context_options, continuation and gold"
                )
            yield item
    except OSError as error:
        raise PruningError(f"the file {str(path)!r} cannot be read: {error.strerror}") from error


def _item(row: Any) -> Item | None:
    """Reads the item of a row; None where it is not one."""
    if not isinstance(row, dict):
        return None
    for one, several in _LAYOUTS:
        text, options, gold = row.get(one), row.get(several), row.get("gold")
        # A bool is an int in Python, hence the exact type of gold.
        if not isinstance(text, str) or not isinstance(options, list) or type(gold) is not int:
            continue
        if not all(isinstance(option, str) and option.strip() for option in options):
            continue
        # One option is always right, and no option never is.
        if len(options) < 2 or not 0 <= gold < len(options):
            continue
        options = [_whole(option) for option in options]
        if one == "query":
            return {"text": _prompt(_whole(text)), "answers": options, "gold": gold}
        return {"text": _whole(text), "contexts": options, "gold": gold}
    return None


def _prompt(query: str) -> str:
    return query.rstrip() + _ANSWER if query.startswith(_QUESTION) else query


def _whole(text: str) -> str:
    """Replaces halves of characters, which JSON may escape and tokenizers refuse."""
    return text.encode("utf-8", "replace").decode()
