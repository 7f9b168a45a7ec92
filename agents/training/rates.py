"""The settings of a sweep: what it refuses, and those of the run at each prune rate."""

import argparse
from dataclasses import replace

from pgprune.agents.registry import AGENTS
from pgprune.agents.training.factory import WarmStart
from pgprune.agents.training.settings import Settings
from pgprune.budget.problem import PruningConfig
from pgprune.errors import PruningError
from pgprune.masking.units import kinds_multiply
from pgprune.metrics.initialization import PROGRESSIVE
from pgprune.runs.sweep import Sweep
from pgprune.utils.command_line import given
from pgprune.utils.process_ids import world_size

_LATER = 0.3  # of the evaluations of a separate run: what a run that starts from another one gets
_ALL = 0.4  # of the evaluations of separate runs: what all together get


def check_sweep(settings: Settings, arguments: argparse.Namespace) -> None:
    """Makes sure that the runs of a sweep can share a search.

    Args:
        settings: of the sweep.
        arguments: parsed options, without those that were not given.

    Raises:
        PruningError: another prune rate, an agent that cannot start from an answer at another rate,
            a start that raises the rate itself, numbers of units that need not shrink together, or
            several processes.
    """
    for name in given(PruningConfig, arguments).keys() & {"prune_rate", "target"}:
        raise PruningError(
            f"--prune-rates and --{name.replace('_', '-')} contradict each other; leave one of "
            "them out"
        )
    agent = settings.agent.agent
    if not issubclass(settings.entry.agent, WarmStart):
        able = ", ".join(name for name, it in AGENTS.items() if issubclass(it.agent, WarmStart))
        raise PruningError(
            f"agent {agent} cannot start from what it learned at another rate, which --prune-rates "
            f"needs; choose one of {able}, or a run for each rate by --prune-rate"
        )
    if settings.init.init == PROGRESSIVE:
        raise PruningError(
            f"--init {PROGRESSIVE} raises the prune rate itself, and so do --prune-rates; choose "
            "another --init"
        )
    if settings.sweep.nested and kinds_multiply(settings.kinds):
        raise PruningError(
            "--nested keeps parts of a larger model, but one with fewer experts may have more "
            "channels of each; leave it out, or choose --granularity experts"
        )
    if settings.run.ray_actors is not None or world_size() > 1:
        raise PruningError(
            "--prune-rates evaluate in one process, and several are asked for; leave out "
            "--ray-actors and torchrun, or start a run for each rate"
        )


def settings_at(settings: Settings, rate: float) -> Settings:
    """Returns the settings of the run at a rate of a sweep."""
    evaluations = evaluations_of(settings, rate)
    return replace(
        settings,
        pruning=replace(settings.pruning, prune_rate=rate),
        run=replace(settings.run, total_timesteps=evaluations, output=None),
    )


def evaluations_of(settings: Settings, rate: float) -> int:
    """Returns the mask evaluations of the run at a rate.

    All runs of a sweep together get 0.4 of those of separate runs, so that it costs less than half
    of them. A run that starts from another one gets 0.3 of a separate run's, and the first all the
    rest, at most as many as a separate run.
    """
    rates, whole = settings.sweep.prune_rates or (rate,), settings.run.total_timesteps
    later = _LATER if rate != rates[0] else min(1.0, _LATER + (_ALL - _LATER) * len(rates))
    return max(1, round(later * whole))


def resumed_sweep(sweep: Sweep, export: str | None = None) -> Settings:
    """Returns the settings of a sweep to resume, with the executor that was chosen when it began.

    Args:
        sweep: to resume.
        export: the format to export all its runs in; None leaves it as it was asked then.

    Raises:
        PruningError: its sweep.yaml lacks a section or holds a wrong value.
    """
    settings = Settings.from_run(sweep)
    executor = sweep.sections.get("decided", {}).get("executor", settings.pruning.executor)
    return replace(
        settings,
        pruning=replace(settings.pruning, executor=executor),
        run=replace(settings.run, export=export or settings.run.export),
    )
