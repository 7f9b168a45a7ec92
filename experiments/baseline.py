"""A baseline from settings to results: what ``scripts/prune_baseline.py`` does.

Load and check everything; let the method choose; evaluate the dense model, the mask, and what the
method ships; write and plot. The run that comes out is of the same kind as an agent's.
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from pgprune.budget.problem import TOKENS_PER_TIMESTEP, PruningConfig, make_problem
from pgprune.data.stream import DataConfig, evaluation_windows, first_windows
from pgprune.errors import PruningError
from pgprune.evaluation.time_table import times
from pgprune.export.export import check_format
from pgprune.methods import METHODS, MethodConfig, Pruned
from pgprune.models.load import ModelConfig, fingerprint
from pgprune.repair.choice import ChosenRepair, chosen_repair
from pgprune.repair.config import RepairConfig
from pgprune.runs.files import RunFile
from pgprune.runs.plots import plot_kept_shares
from pgprune.runs.results import NOTHING, Perplexities, facts, perplexities, with_repair
from pgprune.runs.run import Run
from pgprune.runs.settings import RunConfig, Sections
from pgprune.surgery.stream_slices import stream_sliced
from pgprune.utils.command_line import given
from pgprune.utils.files import saving
from pgprune.utils.memory import memory_now, peak_memory, read_once
from pgprune.utils.progress import note


@dataclass(frozen=True)
class BaselineSettings(Sections):
    """One frozen config for each concern; the fields' names are the sections of config.yaml."""

    method: MethodConfig = MethodConfig()
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    pruning: PruningConfig = PruningConfig()
    repair: RepairConfig = RepairConfig()

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Makes the settings of a new run from parsed options; defaults fit the method.

        Raises:
            PruningError: an option was given that the method cannot follow.
        """
        settings = super().from_arguments(arguments)
        method, repair = settings.method.method, settings.repair.repair
        if METHODS[method].slices and repair != "auto":
            raise PruningError(
                f"--repair {repair} is about pruned units, of which {method} has none; leave it out"
            )
        asked = given(PruningConfig, arguments)
        return replace(settings, pruning=fitting(method, settings.pruning, asked))

    @property
    def name(self) -> str:
        """The name of a run with these settings."""
        return self.run.name(self.method.method, self.model.model, self.pruning.amount)


def fitting(method: str, pruning: PruningConfig, asked: Mapping[str, Any]) -> PruningConfig:
    """Takes a method's own granularity and budget where nothing else was asked for.

    Args:
        method: its name.
        pruning: the settings.
        asked: those that the user has chosen.

    Raises:
        PruningError: the user has chosen what does not fit the method.
    """
    known = METHODS[method]
    for option, fits in (("granularity", known.granularities), ("budget", known.budgets)):
        if option not in asked:
            uniform = pruning.scope == "uniform" and "per-kind" in fits  # which is all it knows
            own: dict[str, Any] = {option: "per-kind" if uniform else fits[0]}
            own |= {} if "scope" in asked else {"scope": "auto"}
            pruning = replace(pruning, **own)
        elif asked[option] not in fits:
            raise PruningError(
                f"method {method} does not fit --{option} {asked[option]}; choose "
                f"{' or '.join(fits)}, or leave it out"
            )
    return pruning


class Baseline:
    """One method on one problem, loaded and checked; ``run`` does it.

    Args:
        settings: of the run.
        known: perplexities of the dense model on the same windows, measured before.

    Raises:
        PruningError: anything that cannot work, before any long work.
    """

    def __init__(self, settings: BaselineSettings, known: Perplexities = NOTHING) -> None:
        self._started = time.monotonic()
        self.settings = settings
        self._known = known
        repair = settings.repair.repair
        biases = repair == "bias" or (repair == "auto" and METHODS[settings.method.method].biases)
        self.problem = make_problem(
            *(settings.model, settings.data, settings.pruning, settings.run.seed),
            biases=biases,
            tables=times,
        )
        if settings.run.export is not None:
            lm, tokenizer = self.problem.lm, self.problem.tokenizer
            scope = settings.pruning.scope
            check_format(settings.run.export, lm, tokenizer, repair, scope, settings.model)
        # Weights are mapped from the disk and read late, which would count as the method's memory.
        read_once(self.problem.lm.model.parameters())
        self._loaded = memory_now(self.problem.lm.device)
        self.windows = evaluation_windows(settings.data, self.problem.tokenizer)  # (N, T) each
        samples, head = settings.method.method_samples, self.problem.stream.head
        self._calibration = head(samples)  # (N, T)
        self._repair_text = head(settings.repair.repair_samples or samples, fewer=True)  # (N, T)

    def run(self, command: Sequence[str]) -> tuple[Run, dict[str, Any]]:
        """Prunes, evaluates, and writes everything.

        Args:
            command: the words of the command.

        Returns:
            The new run, which is made when all is computed, and the content of results.json.

        Raises:
            PruningError: the method cannot do what the settings ask for, or the disk is full.
        """
        settings, lm = self.settings, self.problem.lm
        method, seed = settings.method.method, settings.run.seed
        note(f"{method} on {self.problem.units}; executor {lm.executor}")
        decided = {
            "executor": lm.executor,
            "model_fingerprint": self.problem.model_fingerprint,
            "text_fingerprint": fingerprint(self._calibration),
        }
        started = time.monotonic()
        pruned = METHODS[method](self.problem, self._calibration, seed, settings.method)
        held_out, own = self.problem.validation, pruned.repair
        chosen = chosen_repair(lm, pruned.mask, self._repair_text, held_out, settings.repair, own)
        pruned = replace(pruned, repair=chosen.repair)
        cost = {"seconds": time.monotonic() - started, "tokens": lm.meter.tokens}
        note(f"{method} took {cost['seconds']:.1f} seconds and {lm.meter.tokens:,} tokens")
        # The run appears whole in the end: what fails or is interrupted leaves no directory.
        results = self._results(pruned, chosen, cost)
        run = Run.create(
            settings.run.output,
            settings.sections(decided),
            command,
            settings.name,
            fill=lambda run: self._write(run, pruned, results),
        )
        return run, results

    def _evaluate(self, pruned: Pruned) -> Perplexities:
        """Computes perplexities of the dense model, under the mask only, and as shipped."""
        lm, rows = self.problem.lm, {"dense": self.problem.units.ones()}
        # Cut streams are no mask over units, so there is nothing to evaluate without the cuts.
        if pruned.slices is None:
            rows["masked"] = pruned.mask
        until_sure = self.settings.data.until_sure
        found = perplexities(lm, rows, self.windows, until_sure=until_sure, known=self._known)
        self.windows = first_windows(self.windows, found.windows)
        if pruned.slices is None:
            return with_repair(lm, found, pruned.mask, pruned.repair, self.windows)
        with stream_sliced(lm.model, pruned.slices):
            return found | perplexities(lm, {"pruned": pruned.mask}, self.windows)

    def _results(
        self, pruned: Pruned, chosen: ChosenRepair, cost: dict[str, Any]
    ) -> dict[str, Any]:
        """Evaluates, and returns the content of results.json."""
        settings, problem, lm = self.settings, self.problem, self.problem.lm
        found = self._evaluate(pruned)
        peak, model, seed = peak_memory(lm.device), settings.model.model, settings.run.seed
        known = facts(problem, model, pruned.mask, self.windows, seed, pruned.repair)
        if pruned.slices is not None:  # which no mask describes
            known["parameters"]["pruned"] = pruned.notes["parameters"]
            del known["parameters"]["masked"]
            known["prune_rate"]["achieved"] = pruned.notes["prune_rate"]
            for target in known.get("targets", ()):  # of parameters, as no other fits
                target["reached"] = pruned.notes["parameters"]
        return {
            "method": settings.method.method,
            **known,
            "perplexity": found.values,
            "standard_error": found.errors,
            "mask_evaluations": math.ceil(cost["tokens"] / TOKENS_PER_TIMESTEP),
            "repair": chosen.facts(),
            "method_cost": cost,
            "notes": pruned.notes,
            "tokens": lm.meter.tokens,
            "seconds": time.monotonic() - self._started,
            "peak_memory_bytes": peak,
            "memory_beyond_weights_bytes": max(0, peak - self._loaded),
        }

    def _write(self, run: Run, pruned: Pruned, results: dict[str, Any]) -> None:
        units, budget = self.problem.units, self.problem.budget
        tensors: dict[str, Tensor] = {"mask": pruned.mask} | self.problem.basis.tensors()
        if pruned.importance is not None:
            tensors["scores"] = pruned.importance.scores
        run.write_mask(tensors, units.describe())
        with saving(run.path, " and prune again"):
            if pruned.repair is not None:
                pruned.repair.save(run.path / RunFile.REPAIR)
            if pruned.slices is not None:
                pruned.slices.save(run.path)
        (shares,) = units.kept_shares(pruned.mask[None])
        path = run.path / RunFile.PLOTS / "kept_shares.png"
        plot_kept_shares(path, units.groups, shares, target=budget.target_share)
        run.write_results(results)
