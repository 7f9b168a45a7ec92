"""The table of stages: what each of them left, what it cost and what it reached."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgprune.errors import PruningError
from pgprune.finetuning.output import RECORD_FILE
from pgprune.making.state import State
from pgprune.runs.results_file import read_results
from pgprune.utils.files import read_text
from pgprune.utils.jsonl import parse_json

SEARCH, RECOVERED = "search", "recovered"
"""Directories of stages; those of exports have the names of their formats."""

_SEARCH_ROWS = {
    "dense": "dense model",
    "initial": "one-shot mask of the metric",
    "masked": "searched mask",
    "pruned": "refitted weights",
}


@dataclass(frozen=True)
class Row:
    """What a stage has reached.

    Attributes:
        name: of the stage, for people.
        parameters: that are left; None where nobody counted.
        perplexity: by evaluation text.
        errors: standard errors of these.
        tokens: that the stage has read; None for what is part of another.
        seconds: that it took; likewise.
    """

    name: str
    parameters: int | None
    perplexity: Mapping[str, float]
    errors: Mapping[str, float]
    tokens: int | None = None
    seconds: float | None = None


def table(path: Path, state: State) -> list[Row]:
    """Reads the rows of all stages that are done, the dense model first.

    Raises:
        PruningError: a file of a stage is damaged.
    """
    results = read_results(path / SEARCH)
    if results is None:
        return []
    rows = _of_search(results)
    if (path / RECOVERED).is_dir():
        rows += _of_recovery(read_record(path / RECOVERED / RECORD_FILE))
    if measured := state.stages.get("evaluation"):
        name = f"as written to {state.config.formats[0]}"
        rows.append(
            Row(name, measured["parameters"], measured["perplexity"], measured["standard_error"])
        )
    return rows


def read_record(file: Path) -> dict[str, Any]:
    """Reads the record of a stage.

    Raises:
        PruningError: it is damaged.
    """
    try:
        record: dict[str, Any] = parse_json(read_text(file))
        return record
    except ValueError as error:
        raise PruningError(f"{file} is damaged ({error}); make the model again") from error


def _of_search(results: Mapping[str, Any]) -> list[Row]:
    perplexity, errors = results["perplexity"], results.get("standard_error", {})
    counts = results["parameters"]
    masked = {"masked": counts.get("pruned")}
    rows = []
    for key, name in _SEARCH_ROWS.items():
        if key not in perplexity or (key == "pruned" and perplexity[key] == perplexity["masked"]):
            continue
        shipped = key == ("pruned" if perplexity["pruned"] != perplexity["masked"] else "masked")
        cost = (results["tokens"], results["seconds"]) if shipped else (None, None)
        count = (counts | masked).get(key)
        rows.append(Row(name, count, perplexity[key], errors.get(key, {}), *cost))
    return rows


def _of_recovery(record: Mapping[str, Any]) -> list[Row]:
    perplexity, errors = record["perplexity"], record["standard_error"]
    rows = []
    stages = record["stages"]
    for number, stage in enumerate(stages):
        # What is measured after the last stage is the result, whichever stage that is.
        key = "after" if number == len(stages) - 1 else "local"
        if key in perplexity:
            name = {"local": "local distillation"}.get(stage["stage"], stage["stage"])
            cost = stage["tokens"], stage["seconds"]
            rows.append(Row(name, record["parameters"], perplexity[key], errors[key], *cost))
    return rows
