"""One search for models of several sizes: runs that share what does not depend on the prune rate.

The model, the levels, the dense model's predictions and perplexities, and the metric are computed
once. The run at the lowest rate starts as a single one does; each other one starts from the answer
at the rate below and gets fewer evaluations. Every run is whole: it is resumed by its own
checkpoint, and starts from what is on the disk, so that nothing depends on an interruption.
"""

import time

from pgprune.agents.training.levels import drop_levels
from pgprune.agents.training.loaded import Loaded
from pgprune.agents.training.rates import settings_at
from pgprune.agents.training.settings import Settings, resumed
from pgprune.agents.training.sweep_results import write
from pgprune.agents.training.train import Neighbour, Training
from pgprune.runs.finished import FinishedRun
from pgprune.runs.results import Perplexities, perplexities
from pgprune.runs.run import Run
from pgprune.runs.sweep import Sweep
from pgprune.utils.progress import note, phase


class SweepTraining:
    """The runs of a sweep, loaded and checked; ``run`` starts or resumes them.

    Args:
        settings: of the sweep.

    Raises:
        PruningError: anything that cannot work, at any of the rates, before any long work.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        rates = settings.sweep.prune_rates
        assert rates is not None
        self.rates = rates
        # An automatic executor is that of the highest rate.
        self.loaded = Loaded(settings_at(settings, rates[-1]))
        for rate in rates:
            self.loaded.budget.with_rate(rate)

    def run(self, sweep: Sweep, command: list[str]) -> bool:
        """Trains the run of each rate that is not finished, and writes what all have reached.

        Args:
            sweep: new, or interrupted.
            command: its words, for the command.txt of its runs.

        Returns:
            Whether it has come to the end; not after Ctrl-C.

        Raises:
            PruningError: as ``Training.run``.
        """
        before: FinishedRun | None = None
        for rate in self.rates:
            path = sweep.path_at(rate)
            run = Run.open(path) if path.exists() else None
            if run is None or not run.finished:
                shared = self._share(sweep)
                training = self._training(rate, run, before)
                run = run or self._create(sweep, training, command)
                note(f"run {run.path}")
                training.record.add(shared)
                with run, phase(f"prune rate {rate:g}"):
                    results = training.run(run)
                write(sweep, self.loaded.problem)
                if training.interrupted or not results["completed"]:
                    return False
            before = FinishedRun.open(path)
        if "shared" not in sweep.results:  # it was deleted
            self._share(sweep)
        write(sweep, self.loaded.problem, completed=True)
        drop_levels(sweep)
        return True

    def _share(self, sweep: Sweep) -> Perplexities:
        """Prepares what all runs take; returns the perplexities of the dense model."""
        started, loaded = time.monotonic(), self.loaded
        loaded.prepare(sweep, shared=True)
        if known := sweep.results.get("shared"):
            return Perplexities(known["perplexity"], known["standard_error"], known["windows"])
        lm, rows = loaded.problem.lm, {"dense": loaded.problem.units.ones()}
        tokens = lm.meter.tokens
        until_sure = self.settings.data.until_sure
        found = perplexities(lm, rows, loaded.windows, until_sure=until_sure)
        sweep.write(
            {
                "shared": {
                    "tokens": tokens,
                    "seconds": time.monotonic() - started,
                    "perplexity": found.values,
                    "standard_error": found.errors,
                    "windows": found.windows,
                }
            }
        )
        return found

    def _training(self, rate: float, run: Run | None, before: FinishedRun | None) -> Training:
        """Makes the training at a rate, which starts from the run before."""
        settings = settings_at(self.settings, rate) if run is None else resumed(run)
        if before is None:
            return Training(self.loaded.at(settings))
        checkpoint, mask = before.read_checkpoint(), before.learned_mask().mask
        assert checkpoint is not None
        loaded = self.loaded.at(settings, within=mask if settings.sweep.nested else None)
        return Training(loaded, Neighbour(checkpoint[0], mask))

    def _create(self, sweep: Sweep, training: Training, command: list[str]) -> Run:
        settings = training.settings
        path = sweep.path_at(settings.pruning.prune_rate)
        sections = settings.sections(training.loaded.decided())
        return Run.create(str(path), sections, command, path.name)
