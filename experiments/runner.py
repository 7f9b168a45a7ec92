"""Measures cells, each in a process: makes the run of a cell, and then its records.

A run that is there is not made again, and a mask is repaired without running its method again, so
a command can be killed and repeated at any time.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pgprune.agents.training.loaded import Loaded
from pgprune.agents.training.settings import resumed
from pgprune.agents.training.train import Training
from pgprune.data.stream import DataConfig
from pgprune.errors import PruningError
from pgprune.experiments.baseline import Baseline, BaselineSettings
from pgprune.experiments.cells import Cell, CellsConfig, model_name
from pgprune.experiments.checks import check_cells, settings_of
from pgprune.experiments.records import key_of, missing, read_records
from pgprune.experiments.variants import problem_of, repaired_record, zero_shot
from pgprune.models.load import ModelConfig, check_model
from pgprune.runs.any_model import load_any
from pgprune.runs.files import RunFile
from pgprune.runs.finished import FinishedRun
from pgprune.runs.lock import locked
from pgprune.runs.results import NOTHING, Perplexities
from pgprune.runs.run import Run
from pgprune.utils.jsonl import Record, add_line, close_line
from pgprune.utils.process_pool import run_tasks
from pgprune.utils.progress import listening, log, phase, track

T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """What one process does.

    Attributes:
        cell: to measure.
        words: options of the cell's command.
        options: those of its method among them, by field.
        repairs: records to make; ``none`` is the mask as the method leaves it.
        config: settings that all cells share.
    """

    cell: Cell
    words: list[str]
    options: dict[str, Any]
    repairs: list[str]
    config: CellsConfig

    @property
    def path(self) -> Path:
        """The run's directory."""
        return Path(self.config.output) / self.cell.path

    def __str__(self) -> str:
        return str(self.cell)


def run(
    cells: Sequence[Cell],
    config: CellsConfig,
    data: DataConfig,
    text: Mapping[str, Any],
    workers: int | None = None,
) -> int:
    """Measures what is missing, and shows the progress.

    Args:
        cells: to measure.
        config: settings that all cells share.
        data: the text.
        text: the options for the text that were given, by field.
        workers: processes at a time; 0 measures in this process, None asks the config.

    Returns:
        How many cells ended unexpectedly, without a record.

    Raises:
        PruningError: anything that cannot work, before any long work.
    """
    words = {cell: cell.words(config, text, config.options_of(cell)) for cell in cells}
    with phase("checking the cells"):
        check_cells(words, config, data)
    output = Path(config.output)
    with locked(output / ".lock", output):
        return _run(cells, words, config, workers)


def _run(
    cells: Sequence[Cell],
    words: Mapping[Cell, list[str]],
    config: CellsConfig,
    workers: int | None,
) -> int:
    """Measures what is missing in a directory that no other process writes to."""
    # A kill may leave half a line, to which the next record would else be joined.
    close_line(config.records)
    lacking = missing(cells, read_records(config.records), config.all_repairs, config.retry)
    log(f"{len(cells)} cells, {len(cells) - len(lacking)} measured before")
    work = [
        Work(cell, words[cell], config.options_of(cell), hows, config) for cell, hows in lacking
    ]
    return side_by_side(work, measure, config.at_a_time if workers is None else workers)


def side_by_side(tasks: Sequence[T], work: Callable[[T], None], workers: int) -> int:
    """Does tasks in processes, or in this one if there are to be no workers.

    Returns:
        How many ended unexpectedly.
    """
    if workers:
        return run_tasks(tasks, work, workers, "cells")
    # In this process, what is registered at run time is known, and errors have their traces.
    for task in track(tasks, "cells"):
        with listening(None):
            work(task)
    return 0


def failures(cells: Iterable[Cell], config: CellsConfig) -> int:
    """Counts the cells whose records say that they could not be measured."""
    # The file may hold cells of other commands, whose failures are not this command's.
    asked = {cell.key for cell in cells}
    records = [one for one in read_records(config.records) if key_of(one) in asked]
    return sum("error" in one for one in records)


def measure(work: Work) -> None:
    """Makes the run of a cell unless it is there, and adds a record for each repair.

    Raises:
        PruningError: the records cannot be written.
    """
    records, cell = work.config.records, work.cell
    try:
        if not (work.path.exists() and Run.open(work.path).finished):
            _make_run(work)
        base = _record(work, FinishedRun.open(work.path))
    except PruningError as error:
        add_line(records, _failure(cell, "none", error))
        return
    if "none" in work.repairs:
        add_line(records, base)
    repairs = [how for how in work.repairs if how != "none" and base["mask"] is not None]
    if not repairs:
        return
    run = FinishedRun.open(work.path)
    problem = problem_of(run, cell.seed)  # loaded once for all repairs
    for how in repairs:
        try:
            record = repaired_record(run, base, problem, how, work.config.zero_shot)
        except PruningError as error:
            record = _failure(cell, how, error)
        add_line(records, record)


def _make_run(work: Work) -> None:
    """Does what the cell's command does, in silence; an agent's run is resumed where it can be."""
    settings, path = settings_of(work.cell, work.words), work.path
    command = ["python", f"scripts/{work.cell.script}.py", *work.words]
    if isinstance(settings, BaselineSettings):
        if path.exists():
            shutil.rmtree(path)  # left by a kill; a method has no checkpoints
        Baseline(settings, _known(work)).run(command)
        return
    if path.exists() and settings.entry.no_resume:
        shutil.rmtree(path)
    # A resumed run keeps its own settings; check_same has compared them with today's.
    run = Run.open(path) if path.exists() else None
    loaded = Loaded(resumed(run) if run else settings)
    training = Training(loaded)
    training.record.add(_known(work))
    if run is None:
        run = Run.create(str(path), settings.sections(loaded.decided()), command, path.name)
    loaded.check(run)
    with run:
        training.run(run)


def _known(work: Work) -> Perplexities:
    """Reads what an earlier cell has measured of the dense model on the text of all cells."""
    # A method may have options for the text of its own.
    if work.options.keys() & {*DataConfig.__dataclass_fields__, "dtype"}:
        return NOTHING
    for one in read_records(work.config.records):
        if one["model"] == model_name(work.cell.model) and one.get("dense_standard_error"):
            errors = {"dense": one["dense_standard_error"]}
            return Perplexities({"dense": one["dense"]}, errors, one["windows"])
    return NOTHING


def _failure(cell: Cell, how: str, error: PruningError) -> Record:
    return {**_about(cell), "repair": how, "error": " ".join(str(error).split())}


def _about(cell: Cell) -> Record:
    method, task, seed = cell.key
    model = model_name(cell.model)
    return {"method": method, "task": task, "model": model, "rate": cell.rate, "seed": seed}


def _record(work: Work, run: FinishedRun) -> Record:
    """Makes the record of a finished run as its method leaves it.

    Raises:
        PruningError: the run is damaged, or the loss of an answer was not a number.
    """
    results, cell = run.results, work.cell
    curve = results.get("learning_curve", [])
    # Curves and scores need every look; JSON has null for a loss that is not finite.
    if any(point["loss"] is None for point in curve):
        raise PruningError("the loss of the answer is not a finite number")
    sliced = (run.path / RunFile.SLICES).exists()  # by SliceGPT, which has no mask
    path, perplexity = cell.path.as_posix(), results["perplexity"]
    errors = results.get("standard_error", {})  # not of earlier versions
    record = {
        **_about(cell),
        "repair": "own" if sliced or (run.path / RunFile.REPAIR).exists() else "none",
        "needs": cell.needs,
        "granularity": results["granularity"],
        "layers": check_model(ModelConfig(cell.model))[0].num_hidden_layers,
        "prune_rate": results["prune_rate"]["achieved"],
        "parameters": results["parameters"],
        "dense": perplexity["dense"],
        "perplexity": perplexity["pruned"],
        "masked": perplexity.get("masked"),
        "standard_error": errors.get("pruned"),
        "dense_standard_error": errors.get("dense"),
        "windows": results["evaluation"]["windows"],
        **results["method_cost"],
        "memory_bytes": results["memory_beyond_weights_bytes"],
        "mask_evaluations": results["mask_evaluations"],
        "hyperparameters": work.options,
        "run": path,
        "mask": None if sliced else f"{path}/{RunFile.MASK}",
    }
    if curve:
        record["curve"] = curve
    # Zero-shot tasks take long, so they are not done again when only repairs are missing.
    if work.config.zero_shot.names and "none" in work.repairs:
        loaded = load_any(str(run.path))
        record["zero_shot"] = zero_shot(loaded.model, loaded.tokenizer, work.config.zero_shot)
    return record
