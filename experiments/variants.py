"""Variants of a finished run: its mask under a repair, and zero-shot accuracies of the model."""

import time
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune.budget.problem import Problem, PruningConfig, make_problem
from pgprune.data.stream import DataConfig
from pgprune.evaluation.zero_shot import Harness, load_tasks
from pgprune.experiments.cells import ZeroShotTasks
from pgprune.models.load import ModelConfig
from pgprune.repair.config import added_parameters
from pgprune.repair.fit import fit_repair
from pgprune.repair.repair import Repair, repaired
from pgprune.runs.finished import FinishedRun
from pgprune.runs.results import perplexities
from pgprune.surgery.layers import prune
from pgprune.utils.jsonl import Record
from pgprune.utils.memory import memory_of


def problem_of(run: FinishedRun, seed: int) -> Problem:
    """Loads the pruning problem of a run again."""
    return make_problem(
        run.config("model", ModelConfig),
        run.config("data", DataConfig),
        run.config("pruning", PruningConfig),
        seed,
    )


def repaired_record(
    run: FinishedRun,
    base: Record,
    problem: Problem,
    how: str,
    tasks: ZeroShotTasks,
) -> Record:
    """Measures a run's mask with a repair, fitted on the calibration windows of the run.

    Args:
        run: finished, with a mask.
        base: the record of the run.
        problem: of the run.
        how: as ``fit_repair`` takes it.
        tasks: zero-shot tasks.

    Returns:
        The record; its seconds and tokens are those of the method and of the repair.

    Raises:
        PruningError: the mask is damaged, or the repair fails.
    """
    lm = problem.lm
    mask = run.learned_mask().mask  # (n,)
    # The repair sees what the method saw, so that repairs of methods are comparable.
    windows = problem.stream.head(run.repair_windows)  # (N, T)
    found: list[Repair] = []
    before, started = lm.meter.tokens, time.monotonic()
    memory = memory_of(lambda: found.append(fit_repair(lm, mask, windows, how)), lm.device)
    # memory_of does the work only where it can measure it.
    if not found:
        found.append(fit_repair(lm, mask, windows, how))
    seconds, tokens = time.monotonic() - started, lm.meter.tokens - before
    # Perplexity is measured on the dense model lent as the repaired one: no second copy.
    with repaired(lm, found[0]):
        sets = run.evaluation_windows(problem.tokenizer)  # (N, T) each
        evaluated = perplexities(lm, {"repaired": mask}, sets)
    kept = (
        lm.parameters - problem.units.pruned_parameters(mask) + added_parameters(lm.model, found[0])
    )
    record = base | {
        "repair": how,
        "parameters": base["parameters"] | {"pruned": kept},
        "perplexity": evaluated.values["repaired"],
        "standard_error": evaluated.errors["repaired"],
        "seconds": base["seconds"] + seconds,
        "repair_seconds": seconds,
        "memory_bytes": max(base["memory_bytes"], memory or 0),
        "tokens": base["tokens"] + tokens,
    }
    if tasks.names:
        model: Any = lm.model
        pruned = prune(model, problem.units, mask, found[0])
        record["zero_shot"] = zero_shot(pruned, problem.tokenizer, tasks)
    return record


def zero_shot(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tasks: ZeroShotTasks
) -> dict[str, Any]:
    """Returns the accuracy on each zero-shot task, and whether it is above chance."""
    harness = Harness(model, tokenizer)
    loaded = load_tasks(tasks.names, tasks.folder)
    found = [harness.evaluate(task, tasks.limit) for task in loaded]
    return {
        one.task: {
            "accuracy": one.accuracy["acc"],
            "stderr": one.stderr["acc"],
            "verdict": one.verdict("acc"),
        }
        for one in found
    }
