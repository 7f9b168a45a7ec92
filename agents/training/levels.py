"""The levels of a run: fitted once and kept in its directory; and what agents start from."""

import shutil

from torch import Tensor

from pgprune.agents.level_search import scores_of_levels
from pgprune.agents.levels.start import starts
from pgprune.agents.training.config import LEVELS
from pgprune.agents.training.factory import searches_levels
from pgprune.agents.training.settings import Settings
from pgprune.budget.level_grid import grid
from pgprune.budget.problem import Problem
from pgprune.envs.judge import Judge
from pgprune.metrics import METRICS, Importance
from pgprune.repair.fit_levels import fit_levels
from pgprune.repair.levels import Levels
from pgprune.runs.files import RunFile
from pgprune.runs.run import Run
from pgprune.utils.manifest import MANIFEST

_WINDOWS = 32  # that choose the start


def levels_of(
    run: Run, settings: Settings, problem: Problem, windows: Tensor, shared: bool = False
) -> Levels | None:
    """Reads the levels of a run, or fits them on calibration windows (N, T) and keeps them there.

    Args:
        run: in whose directory they are.
        settings: of the run.
        problem: the model and its budget.
        windows: calibration token ids to fit them on, (N, T).
        shared: whether runs at other prune rates take them too.

    Returns:
        Them; None where the rewards are about something else.

    Raises:
        PruningError: they are damaged, activations overflow, or the disk is full.
    """
    if settings.reward != LEVELS:
        return None
    folder = run.path / RunFile.LEVELS
    if (found := Levels.load(problem.units, folder, problem.lm.device)) is not None:
        problem.lm.meter.add(found.tokens)  # as if they were fitted; a checkpoint has its own count
        return found
    kept, _ = grid(problem.budget, shared)
    with run.saving():
        return fit_levels(problem.lm, windows, kept, folder, settings.repair.damping)


def drop_levels(run: Run) -> None:
    """Removes the levels of a run that needs them no more; they are several times the model."""
    folder = run.path / RunFile.LEVELS
    (folder / MANIFEST).unlink(missing_ok=True)  # first: without it, they are fitted again
    shutil.rmtree(folder, ignore_errors=True)


def start_of(settings: Settings, problem: Problem, windows: Tensor, judge: Judge) -> Importance:
    """Returns the importance that an agent starts from: of the metric, or of its levels.

    The search of levels starts from the best of a few choices on a few windows.

    Args:
        settings: of the run.
        problem: the model and its budget.
        windows: calibration token ids of the metric, (N, T).
        judge: computes the loss of rewards.
    """
    if judge.levels is None or not searches_levels(settings):
        metric, seed = METRICS[settings.metric], settings.run.seed
        return metric(problem.lm, windows, problem.budget, seed)
    choices = starts(judge.levels, problem.budget)  # (S, groups)
    losses = judge(judge.levels.masks(choices), windows[:_WINDOWS])  # (S, B)
    return Importance(scores_of_levels(judge.levels, choices[losses.mean(dim=1).argmin()]))
