"""Repairs and evaluates a run again, for an export that differs from what the run has measured.

The repair of a run is of its mask, so another mask needs another one, made in the same way on the
same calibration text. The result is evaluated on the evaluation text of the run.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from pgprune.budget.bounds import bound_of
from pgprune.budget.targets import Target
from pgprune.data.calibration import open_calibration
from pgprune.data.stream import DataConfig
from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.models.load import ModelConfig, choose_dtype, move_model
from pgprune.repair.choice import ChosenRepair, chosen_repair
from pgprune.repair.config import RepairConfig, added_parameters, describe, repair_name
from pgprune.repair.repair import Repair
from pgprune.runs.finished import FinishedRun, LoadedRun
from pgprune.runs.model_card import perplexity_text
from pgprune.runs.results import Perplexities, perplexities, with_repair
from pgprune.utils.devices import choose_device
from pgprune.utils.jsonl import finite
from pgprune.utils.progress import phase


def reship(
    loaded: LoadedRun,
    how: str = "auto",
    damping: float | str | None = None,
    samples: int | None = None,
) -> LoadedRun:
    """Repairs and evaluates a run for an export that differs from what the run has measured.

    Args:
        loaded: the run, perhaps with another mask than the learned one.
        how: the repair; ``auto`` is the run's own, made again where the mask is another one.
        damping: of that repair; None takes the run's.
        samples: calibration windows of that repair; None takes the run's.

    Returns:
        The run itself where it is as the run has measured it; else with its repair, figures in
        the results and notes that say so.

    Raises:
        PruningError: the run's calibration or evaluation text cannot be read, or the repair fails.
    """
    unchanged = how == "auto" or (how == "none" and loaded.repair is None)
    if (loaded.has_learned_mask and unchanged) or loaded.slices is not None:
        return loaded
    wanted = _wanted(loaded, how, damping, samples)
    with _masked_lm(loaded) as lm:
        # A repair is refitted on the dense model, in the number format of the run.
        chosen = chosen_repair(lm, loaded.mask, *_calibration(loaded, wanted), wanted)
        found = _perplexity(loaded, lm, chosen.repair)
        added = added_parameters(lm.model, chosen.repair)
    sections = loaded.run.sections | {"repair": asdict(wanted)}
    results = _results(loaded, found, added) | {"repair": chosen.facts()}
    run = FinishedRun(loaded.run.path, sections, results)
    note = _note(loaded, results, wanted, chosen)
    return replace(loaded, run=run, repair=chosen.repair, notes=(*loaded.notes, note))


def _wanted(
    loaded: LoadedRun, how: str, damping: float | str | None, samples: int | None
) -> RepairConfig:
    """Chooses the repair to make: like the run's own where nothing else is asked for."""
    asked = RepairConfig()
    if "repair" in loaded.run.sections:
        asked = loaded.run.config("repair", RepairConfig)
    if how == "auto":
        # A repair that a method brings fits its mask only; another mask gets the nearest option.
        how = repair_name(loaded.repair) if asked.repair == "auto" else asked.repair
    return replace(
        asked,
        repair=how,
        repair_damping=asked.repair_damping if damping is None else damping,
        repair_samples=samples or asked.repair_samples,
    )


@contextmanager
def _masked_lm(loaded: LoadedRun) -> Iterator[MaskedLM]:
    """Lends the dense model as the run evaluated it, and puts it back as it was loaded."""
    config, before = loaded.run.config("model", ModelConfig), loaded.model.dtype
    device = choose_device("cpu" if config.device_map else "auto")
    dtype = choose_dtype(config, device)
    # The executor that the run decided on: its figures are compared with those of this one.
    executor = loaded.run.sections.get("decided", {}).get("executor", "sliced")
    model = loaded.model if isinstance(dtype, str) else loaded.model.to(dtype)  # type: ignore[arg-type]
    yield MaskedLM(move_model(model, device), loaded.units, executor)
    # Writers expect the model on the CPU, in the format to export.
    move_model(loaded.model.to(before), torch.device("cpu"))  # type: ignore[arg-type]


def _calibration(loaded: LoadedRun, wanted: RepairConfig) -> tuple[Tensor, Tensor]:
    """Reads windows to repair on, as the run has or would have, and those held out, (N, T) each."""
    if wanted.repair == "none":
        return torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0, dtype=torch.int64)
    data, seed = loaded.run.config("data", DataConfig), loaded.run.sections["run"]["seed"]
    with phase("reading the calibration text"):
        stream, held_out = open_calibration(data, loaded.tokenizer, seed)
    return stream.head(wanted.repair_samples or loaded.run.repair_windows, fewer=True), held_out


def _perplexity(loaded: LoadedRun, lm: MaskedLM, repair: Repair | None) -> Perplexities:
    """Measures the rows ``masked`` and ``pruned`` as the run has measured its own."""
    mask, results = loaded.mask, loaded.run.results
    errors = results.get("standard_error", {}).get("masked", {})  # not of earlier versions
    found = Perplexities({"masked": results["perplexity"]["masked"]}, {"masked": errors})
    if loaded.has_learned_mask and repair is None:
        return found.shipped_as_masked()
    windows = loaded.run.evaluation_windows(loaded.tokenizer)
    if not loaded.has_learned_mask:
        # The run has measured its own mask; another one was never evaluated.
        found = perplexities(lm, {"masked": mask}, windows)
    return with_repair(lm, found, mask, repair, windows)


def _results(loaded: LoadedRun, found: Perplexities, added: int) -> dict[str, Any]:
    """Returns the run's results with the figures of what is shipped."""
    # The results of the run stay as they are on the disk.
    results, units = copy.deepcopy(loaded.run.results), loaded.units
    for name, table in (("perplexity", found.values), ("standard_error", found.errors)):
        before = results.get(name, {})
        learned = {} if loaded.has_learned_mask else {"learned": before.get("pruned", {})}
        results[name] = before | learned | finite(table)
    results["prune_rate"]["achieved"] = units.prune_rate(loaded.mask)
    counts = results["parameters"]
    counts["masked"] = counts["dense"] - units.pruned_parameters(loaded.mask)
    counts["pruned"] = counts["masked"] + added
    if "targets" in results:
        results["targets"] = list(_reached(loaded, results["targets"], added))
    return results


def _reached(
    loaded: LoadedRun, targets: Sequence[Mapping[str, Any]], added: int
) -> Iterator[dict[str, Any]]:
    """Yields the run's targets with what is reached, without times that were measured elsewhere."""
    for each in targets:
        target = Target.parse(each["target"])
        try:
            bound = bound_of(target, loaded.model, loaded.units)
        except PruningError:  # no table of times of this device
            continue
        yield {**each, "reached": bound.value(loaded.mask, added)}


def _note(
    loaded: LoadedRun, after: dict[str, Any], wanted: RepairConfig, chosen: ChosenRepair
) -> str:
    """Says which repair this is, and what came of it."""
    if chosen.losses and chosen.repair is None:
        repair = f"Not repaired: {describe(wanted)} does harm on held-out calibration text. "
    elif wanted.repair != "none":
        repair = f"Repaired for this export, on the run's calibration text: {describe(wanted)}. "
    else:
        repair = "Without the run's repair. " if loaded.repair is not None else ""
    before = loaded.run.results["perplexity"]["pruned"]
    costs = ", ".join(
        f"{perplexity_text(value)} on {name} (as the run has left it: "
        f"{perplexity_text(before.get(name))})"
        for name, value in after["perplexity"]["pruned"].items()
    )
    return f"{repair}Perplexity: {costs}."
