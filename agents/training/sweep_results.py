"""What a sweep has reached: sweep.json, a table of the candidates, and a picture of them."""

import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from safetensors.torch import load_file
from transformers import PreTrainedModel

from pgprune.budget.bound import Bound
from pgprune.budget.bounds import bound_of
from pgprune.budget.problem import Problem
from pgprune.budget.targets import Target
from pgprune.data.stream import DataConfig
from pgprune.errors import PruningError, printable
from pgprune.evaluation.latency import LatencyConfig, measure
from pgprune.evaluation.timing import Spread
from pgprune.models.load import ModelConfig
from pgprune.runs.any_model import load_any
from pgprune.runs.files import RunFile
from pgprune.runs.finished import FinishedRun
from pgprune.runs.number_table import print_table
from pgprune.runs.plots import plot_candidates
from pgprune.runs.run import Run
from pgprune.runs.sweep import Sweep
from pgprune.utils.files import write_file
from pgprune.utils.markdown import grid, plain
from pgprune.utils.progress import duration, note, phase

COSTS = ("mask_evaluations", "tokens", "seconds")
_CACHED = 4096  # tokens whose keys and values count as memory
_MOST = 4 * 2**30  # bytes of the models whose times are measured, all in memory at once
_BATCH = 8
_ROUNDS = 5


def write(sweep: Sweep, problem: Problem, completed: bool = False) -> None:
    """Writes sweep.json, candidates.md and plots/candidates.png.

    Args:
        sweep: some of whose runs are finished.
        problem: its model, at any rate.
        completed: whether all are, and times are to be measured.

    Raises:
        PruningError: the disk is full or refuses.
    """
    results = _summary(sweep, problem)
    if completed:
        results["completed"] = True
        weights = problem.lm.parameters * problem.lm.dtype.itemsize
        for rate, share in times(sweep, weights).items():
            results["runs"][rate]["time"] = share
    _write_candidates(sweep, results)
    sweep.write(results)


def _summary(sweep: Sweep, problem: Problem) -> dict[str, Any]:
    """Returns the content of sweep.json, but for what ``times`` measures."""
    memory = memory_of(problem)
    runs = {
        str(rate): _candidate(FinishedRun.open(sweep.path_at(rate)), problem, memory)
        for rate in sweep.existing()
        if Run.open(sweep.path_at(rate)).finished
    }
    shared = sweep.results["shared"]
    total = {name: sum(run[name] for run in runs.values()) for name in COSTS}
    total |= {name: total[name] + shared[name] for name in ("tokens", "seconds")}
    return {
        "completed": False,
        "model": sweep.sections["model"]["model"],
        "agent": sweep.sections["agent"]["agent"],
        "nested": sweep.sections["sweep"]["nested"],
        "seed": sweep.sections["run"]["seed"],
        "shared": shared,
        "cached": {"batch": memory.target.batch, "length": memory.target.length},
        "dense": {
            "parameters": problem.lm.parameters,
            "memory_bytes": memory.value(problem.units.ones()),
            "perplexity": shared["perplexity"]["dense"],
        },
        "runs": runs,
        "total": total,
    }


def _candidate(run: FinishedRun, problem: Problem, memory: Bound) -> dict[str, Any]:
    """Returns what sweep.json says of a run."""
    results, mask = run.results, run.learned_mask().mask
    parameters = results["parameters"]
    added = parameters["pruned"] - (problem.lm.parameters - problem.units.pruned_parameters(mask))
    return {
        "prune_rate": results["prune_rate"]["achieved"],
        "parameters": parameters["pruned"],
        "memory_bytes": memory.value(mask, added),
        "initial": {
            "parameters": parameters["initial"],
            "memory_bytes": memory.value(load_file(run.path / RunFile.MASK)["initial"]),
        },
        "perplexity": {row: results["perplexity"][row] for row in ("initial", "masked", "pruned")},
        **{name: results[name] for name in COSTS},
    }


def memory_of(problem: Problem) -> Bound:
    """Returns what counts the bytes of weights and of a text's cache of keys and values.

    The text has 4,096 tokens, or as many as the context. Where the heads of a family are unknown,
    only weights count.
    """
    model, units = problem.lm.model, problem.units
    assert isinstance(model, PreTrainedModel)
    length = getattr(model.config, "max_position_embeddings", None) or _CACHED
    try:
        return bound_of(Target.parse(f"memory<=1B@1x{min(_CACHED, length)}"), model, units)
    except PruningError:
        return bound_of(Target.parse("memory<=1B"), model, units)


def times(sweep: Sweep, weight_bytes: int) -> dict[str, float]:
    """Measures how long the models of a sweep take to read a batch: shares of the dense time.

    All are in memory at once and take turns, so it is left out where they are large.

    Args:
        sweep: all of whose runs are finished.
        weight_bytes: of the dense model.

    Returns:
        By rate, the median over rounds; nothing where it was not measured.
    """
    sources = {str(rate): str(sweep.path_at(rate)) for rate in sweep.rates}
    if weight_bytes * (len(sources) + 1) > _MOST:
        note("times are not measured, as the models are large; pgprune bench-inference does that")
        return {}
    asked, data = sweep.config("model", ModelConfig), sweep.config("data", DataConfig)
    length = max(1, data.sequence_length - 1)
    config = LatencyConfig((_BATCH,), (length,), new_tokens=1, repeats=_ROUNDS, device=asked.device)
    with phase("times"):
        names = {"dense": asked.model} | sources
        try:
            models = {key: load_any(name, device=asked.device).model for key, name in names.items()}
            dense, *others = measure(models, config)
        except PruningError as error:
            note(f"times are not measured: {error}")
            return {}
    return {it.model: Spread.of_ratios(it.prefill, dense.prefill).median for it in others}


def _write_candidates(sweep: Sweep, results: Mapping[str, Any]) -> None:
    head, rows = _table(results)
    nested = ", each a part of the larger ones" if results["nested"] else ""
    shared, total = results["shared"], results["total"]
    text = (
        f"# {plain(results['model'])} at {len(results['runs'])} prune rates\n\n"
        f"Agent {results['agent']}, seed {results['seed']}{nested}. Perplexity as shipped; "
        f"*one-shot* is the mask that a search at that rate alone would start from. "
        f"{_memory(results['cached'])}\n\n"
        f"{grid(head, rows)}\n{_said(shared, total)}\n"
    )
    with sweep.saving():
        write_file(sweep.path / RunFile.CANDIDATES, text.encode())
    if results["runs"]:
        plot_candidates(sweep.path / RunFile.PLOTS / "candidates.png", results)


def print_candidates(results: Mapping[str, Any], console: Console) -> None:
    """Prints the table of candidates, and what all of them cost together."""
    head, rows = _table(results)
    print_table(head, rows, console)
    console.print(printable(_said(results["shared"], results["total"])), soft_wrap=True)


def next_of_sweep(sweep: Sweep) -> list[str]:
    """Returns commands that are useful after a sweep."""
    path, middle = shlex.quote(str(sweep.path)), sweep.rates[len(sweep.rates) // 2]
    return [
        f"pgprune export {path} --at {middle}    # the smaller model, for transformers",
        f"pgprune evaluate {path}/{middle}    # each rate is a run: accuracy, other texts",
    ]


def _table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of candidates, the dense model first."""
    dense, runs = results["dense"], results["runs"]
    sets = list(dense["perplexity"])
    timed = any("time" in run for run in runs.values())
    head = ["prune rate", "parameters", "memory (MB)", *(["time"] if timed else [])]
    head += [*sets, *(f"one-shot {name}" for name in sets), "evaluations", "minutes"]
    rows = [["dense", *_size(dense), *(["1.00"] if timed else [])]]
    rows[0] += [f"{dense['perplexity'][name]:,.2f}" for name in sets] + ["-"] * (len(sets) + 2)
    for rate, run in runs.items():
        found = run["perplexity"]
        row = [rate, *_size(run), *([f"{run['time']:.2f}"] if timed else [])]
        row += [_number(found[kind][name]) for kind in ("pruned", "initial") for name in sets]
        rows.append([*row, f"{run['mask_evaluations']:,}", f"{run['seconds'] / 60:.1f}"])
    return head, rows


def _memory(cached: Mapping[str, int]) -> str:
    """Says what counts as memory."""
    if not cached["batch"]:
        return "Memory is that of the weights, in the number format of the run."
    return (
        f"Memory is that of the weights and of keys and values of {cached['length']:,} tokens, in "
        "the number format of the run. Time is that of a batch as long as those of calibration, "
        "measured in turn with the dense model."
    )


def _size(model: Mapping[str, Any]) -> list[str]:
    return [f"{model['parameters']:,}", f"{model['memory_bytes'] / 1e6:,.2f}"]


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:,.2f}"


def _said(shared: Mapping[str, Any], total: Mapping[str, Any]) -> str:
    """Says what a sweep took."""
    return (
        f"All together: {total['mask_evaluations']:,} mask evaluations, {total['tokens']:,} tokens"
        f", {duration(total['seconds'])}; of that {shared['tokens']:,} tokens and "
        f"{duration(shared['seconds'])} for what the rates share."
    )
