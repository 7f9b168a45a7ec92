"""A finished run shipped in another form than it has measured: another mask, or another repair.

The repair of a run is of its mask, so another mask needs another one, made in the same way on the
same calibration text. What is shipped then is evaluated on the run's own evaluation text.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from pgprune.data.stream import DataConfig, calibration_stream, evaluation_windows
from pgprune.masking.masked_lm import MaskedLM
from pgprune.models.load import ModelConfig, choose_dtype, move_model
from pgprune.repair.config import (
    RepairConfig,
    added_parameters,
    chosen_repair,
    describe,
    repair_name,
)
from pgprune.repair.repair import Repair
from pgprune.runs.finished import Source
from pgprune.runs.results import Table, perplexities, with_repair
from pgprune.runs.run import Run
from pgprune.utils.devices import choose_device
from pgprune.utils.jsonl import finite


def shipped(run: Run, source: Source, how: str = "auto", damping: float | None = None) -> Source:
    """What a run ships with the mask and the repair that are wanted.

    Args:
        run: the run.
        source: what was loaded of it, perhaps with another mask than the learned one.
        how: the repair; ``auto`` is the run's own, made anew where the mask is another one.
        damping: of that repair; None takes the run's.

    Returns:
        The source itself where it is as the run has measured it; else with its repair, figures in
        the results and notes that say so.

    Raises:
        PruningError: the run's calibration or evaluation text cannot be read, or the repair fails.
    """
    own = torch.equal(source.mask, source.learned.mask)
    as_it_is = how == "auto" or (how == "none" and source.repair is None)
    if (own and as_it_is) or source.slices is not None:
        return source
    wanted = _wanted(run, source, how, damping)
    with _masked_lm(run, source) as lm:
        new = chosen_repair(lm, source.mask, _calibration(run, source, wanted), wanted)
        table = _perplexity(run, source, lm, new)
        added = added_parameters(lm, new)
    found = replace(
        source,
        repair=new,
        results=_results(source, table, added, own),
        sections=source.sections | {"repair": asdict(wanted)},
    )
    return replace(found, notes=(*source.notes, _note(source, found, wanted)))


def _wanted(run: Run, source: Source, how: str, damping: float | None) -> RepairConfig:
    """The repair to make; like the run's own where nothing else is asked for."""
    asked = RepairConfig()
    if "repair" in run.sections:
        asked = run.config("repair", RepairConfig)
    if how == "auto":
        # What a method brings is of its own mask; another one gets the nearest thing.
        how = repair_name(source.repair) if asked.repair == "auto" else asked.repair
    return RepairConfig(how, asked.repair_damping if damping is None else damping)


@contextmanager
def _masked_lm(run: Run, source: Source) -> Iterator[MaskedLM]:
    """The dense model as the run has had it; afterwards it is as it was loaded."""
    config, own = run.config("model", ModelConfig), source.model.dtype
    device = choose_device("cpu" if config.device_map else "auto")
    dtype = choose_dtype(config, device)
    executor = run.sections.get("decided", {}).get("executor", "sliced")
    model = source.model if isinstance(dtype, str) else source.model.to(dtype)  # type: ignore[arg-type]
    yield MaskedLM(move_model(model, device), source.units, executor)
    move_model(source.model.to(own), torch.device("cpu"))  # type: ignore[arg-type]


def _calibration(run: Run, source: Source, wanted: RepairConfig) -> Tensor:
    """The windows that the run has repaired on, or would have, (N, T)."""
    if wanted.repair == "none":
        return torch.empty(0, 0, dtype=torch.int64)
    data, seed = run.config("data", DataConfig), run.sections["run"]["seed"]
    return calibration_stream(data, source.tokenizer, seed).head(repaired_on(run))


def repaired_on(run: Run) -> int:
    """Calibration windows that a run repairs on: of its method, or of its agent's start."""
    samples = run.sections.get("init", {}).get("init_samples", 128)
    return int(run.sections.get("method", {}).get("method_samples", samples))


def _perplexity(run: Run, source: Source, lm: MaskedLM, repair: Repair | None) -> Table:
    """The rows ``masked`` and ``pruned``, measured as the run has measured its own."""
    mask, rows = source.mask, {"masked": source.results["perplexity"]["masked"]}
    own = torch.equal(mask, source.learned.mask)
    if own and repair is None:
        return rows | {"pruned": rows["masked"]}
    windows = evaluation_windows(run.config("data", DataConfig), source.tokenizer)
    if not own:
        rows = perplexities(lm, {"masked": mask}, windows)
    return with_repair(lm, rows, mask, repair, windows)


def _results(source: Source, table: Table, added: int, own: bool) -> dict[str, Any]:
    """The run's results with this as what is shipped."""
    results, units = copy.deepcopy(source.results), source.units
    before = results["perplexity"]
    learned = {} if own else {"learned": before["pruned"]}
    results["perplexity"] = before | learned | finite(table)
    results["prune_rate"]["achieved"] = units.prune_rate(source.mask)
    counts = results["parameters"]
    counts["masked"] = counts["dense"] - units.pruned_parameters(source.mask)
    counts["pruned"] = counts["masked"] + added
    return results


def _note(before: Source, after: Source, wanted: RepairConfig) -> str:
    """Says which repair this is, and what came of it."""
    if wanted.repair != "none":
        repair = f"Repaired for this export, on the run's calibration text: {describe(wanted)}. "
    else:
        repair = "Without the run's repair. " if before.repair is not None else ""
    own = before.results["perplexity"]["pruned"]
    costs = ", ".join(
        f"{_number(value)} on {name} (as the run has left it: {_number(own.get(name))})"
        for name, value in after.results["perplexity"]["pruned"].items()
    )
    return f"{repair}Perplexity: {costs}."


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2f}"
