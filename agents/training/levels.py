"""The levels of a run: fitted once, and kept in its directory."""

from torch import Tensor

from pgprune.agents.level_grid import grid
from pgprune.agents.level_search import scores_of_levels
from pgprune.masking.budget import Budget
from pgprune.masking.problem import Problem
from pgprune.metrics import Importance
from pgprune.repair.fit_levels import fit_levels
from pgprune.repair.levels import Levels
from pgprune.runs.files import RunFile
from pgprune.runs.run import Run


def levels_of(run: Run, problem: Problem, windows: Tensor, damping: float) -> Levels:
    """Reads the levels of a run, or fits them on calibration windows (N, T) and keeps them there.

    Raises:
        PruningError: they are damaged, activations overflow, or the disk is full.
    """
    folder = run.path / RunFile.LEVELS
    if (found := Levels.load(problem.units, folder, problem.lm.device)) is not None:
        return found
    kept, _ = grid(problem.budget)
    with run.saving():
        return fit_levels(problem.lm, windows, kept, folder, damping)


def start_of_search(levels: Levels, budget: Budget) -> Importance:
    """Returns an importance whose mask is the one that the search of levels starts from."""
    _, start = grid(budget)
    return Importance(scores_of_levels(levels, start))
