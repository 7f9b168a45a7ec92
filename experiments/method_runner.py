"""Measures the cells of a comparison, each in a process of its own.

It makes the run of its cell unless that is there, and then repairs the mask of the run, without
running the method again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune.data.stream import DataConfig, evaluation_windows
from pgprune.errors import PruningError
from pgprune.evaluation.zero_shot import Harness, load_tasks
from pgprune.experiments.method_cells import Cell, needs
from pgprune.experiments.method_records import add_record
from pgprune.masking.problem import Problem, PruningConfig, make_problem
from pgprune.models.load import ModelConfig, check_model
from pgprune.repair.config import added_parameters
from pgprune.repair.fit import fit_repair
from pgprune.repair.repair import Repair, repaired
from pgprune.runs.any_model import load_any
from pgprune.runs.files import RunFile
from pgprune.runs.finished import FinishedRun
from pgprune.runs.results import perplexities
from pgprune.runs.run import Run
from pgprune.surgery.layers import prune
from pgprune.utils.jsonl import Record
from pgprune.utils.memory import memory_of


@dataclass(frozen=True)
class Task:
    """What one process does.

    Attributes:
        cell: to measure.
        words: options of the cell's command.
        repairs: to measure, of which ``none`` is the mask as the method leaves it.
        output: the comparison's directory.
        tasks: zero-shot tasks.
        task_data: their folder; None takes lm-eval's own data.
        limit: items of each task, at most.
    """

    cell: Cell
    words: list[str]
    repairs: list[str]
    output: str
    tasks: list[str]
    task_data: str | None = None
    limit: int | None = None

    def __str__(self) -> str:
        return str(self.cell)


Prune = Callable[[Task], None]
"""Leaves the finished run of a task's cell where its words say."""


def measure(task: Task, prune: Prune) -> None:
    """Measures what a task asks for, and adds a line to the records for each repair.

    Args:
        task: a cell and the repairs that it lacks.
        prune: makes the run of the cell.

    Raises:
        PruningError: the records cannot be written.
    """
    output, cell = Path(task.output), task.cell
    path = output / cell.path
    try:
        if not (path.exists() and Run.open(path).finished):
            prune(task)
        base = base_record(task, FinishedRun.open(path))
    except PruningError as error:
        return add_record(output, failure(cell, "none", error))
    if "none" in task.repairs:
        add_record(output, base)
    repairs = [how for how in task.repairs if how != "none" and base["mask"] is not None]
    if not repairs:
        return None
    problem = _problem(Run.open(path), cell.seed)
    for how in repairs:
        try:
            record = repaired_record(task, base, problem, how)
        except PruningError as error:
            record = failure(cell, how, error)
        add_record(output, record)


def failure(cell: Cell, how: str, error: PruningError) -> Record:
    """The record of what cannot be measured."""
    return {**_about(cell), "repair": how, "error": " ".join(str(error).split())}


def base_record(task: Task, run: FinishedRun) -> Record:
    """The record of a run as its method leaves it.

    Args:
        task: of its cell.
        run: finished.

    Raises:
        PruningError: the run is damaged.
    """
    results, cell = run.results, task.cell
    sliced = (run.path / RunFile.SLICES).exists()
    own = sliced or (run.path / RunFile.REPAIR).exists()
    cost = results.get("method_cost", results)
    record = {
        **_about(cell),
        "repair": "own" if own else "none",
        "needs": needs(cell.method),
        "granularity": results["granularity"],
        "layers": check_model(ModelConfig(cell.model))[0].num_hidden_layers,
        "prune_rate": results["prune_rate"]["achieved"],
        "parameters": results["parameters"],
        "dense": results["perplexity"]["dense"],
        "perplexity": results["perplexity"]["pruned"],
        "seconds": cost["seconds"],
        "memory_bytes": results["memory_beyond_weights_bytes"],
        "mask_evaluations": results["mask_evaluations"],
        "tokens": cost["tokens"],
        "run": cell.path.as_posix(),
        "mask": None if sliced else f"{cell.path.as_posix()}/{RunFile.MASK}",
    }
    if task.tasks and "none" in task.repairs:
        loaded = load_any(str(run.path))
        record["zero_shot"] = _zero_shot(loaded.model, loaded.tokenizer, task)
    return record


def repaired_record(task: Task, base: Record, problem: Problem, how: str) -> Record:
    """The record of a run's mask with a repair, on the calibration windows of the run.

    Args:
        task: of its cell.
        base: the record of the run.
        problem: of the run.
        how: as ``pgprune.repair.repair.repair``.

    Raises:
        PruningError: the mask is damaged, or the repair fails.
    """
    lm, run = problem.lm, FinishedRun.open(Path(task.output) / task.cell.path)
    mask = run.learned_mask().mask
    windows = problem.stream.head(run.repair_windows)
    found: list[Repair] = []
    before, started = lm.meter.tokens, time.monotonic()
    memory = memory_of(lambda: found.append(fit_repair(lm, mask, windows, how)), lm.device)
    if not found:  # memory cannot be measured here
        found.append(fit_repair(lm, mask, windows, how))
    seconds, tokens = time.monotonic() - started, lm.meter.tokens - before
    with repaired(lm, found[0]):
        sets = evaluation_windows(problem.data, problem.tokenizer)
        perplexity = perplexities(lm, {"repaired": mask}, sets)["repaired"]
    model: Any = lm.model
    pruned = prune(model, problem.units, mask, found[0]) if task.tasks else None
    kept = (
        lm.parameters - problem.units.pruned_parameters(mask) + added_parameters(lm.model, found[0])
    )
    record = base | {
        "repair": how,
        "parameters": base["parameters"] | {"pruned": kept},
        "perplexity": perplexity,
        "seconds": base["seconds"] + seconds,
        "repair_seconds": seconds,
        "memory_bytes": max(base["memory_bytes"], memory or 0),
        "tokens": base["tokens"] + tokens,
    }
    if pruned is not None:
        record["zero_shot"] = _zero_shot(pruned, problem.tokenizer, task)
    return record


def _about(cell: Cell) -> Record:
    model, method, rate, seed = cell.key
    return {"model": model, "method": method, "rate": rate, "seed": seed}


def _problem(run: Run, seed: int) -> Problem:
    """The problem that a run was about, loaded again."""
    return make_problem(
        run.config("model", ModelConfig),
        run.config("data", DataConfig),
        run.config("pruning", PruningConfig),
        seed,
    )


def _zero_shot(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task
) -> dict[str, Any]:
    """Accuracy and verdict of each zero-shot task."""
    harness = Harness(model, tokenizer)
    found = [harness.evaluate(each, task.limit) for each in load_tasks(task.tasks, task.task_data)]
    return {
        one.task: {"accuracy": one.accuracy["acc"], "verdict": one.verdict("acc")} for one in found
    }
