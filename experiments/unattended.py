"""Runs that nobody watches: as ``scripts/train_agent.py`` makes them, killed and repeated."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from pgprune.agents.training.settings import Settings, resumed
from pgprune.agents.training.train import Training
from pgprune.runs.progress_view import ProgressView
from pgprune.runs.run import Run


def train(settings: Settings, command: Sequence[str]) -> None:
    """Makes the run of some settings, or goes on with it; one that cannot go on starts over.

    Args:
        settings: of the run, which say where it is.
        command: the words that make such a run.

    Raises:
        PruningError: anything that cannot work.
    """
    path = Path(str(settings.run.output))
    if path.exists() and settings.entry.no_resume:
        shutil.rmtree(path)
    run = Run.open(path) if path.exists() else None
    training = Training(resumed(run) if run else settings, ProgressView("", quiet=True))
    if run is None:
        run = Run.create(str(path), settings.sections(training.decided()), command, path.name)
    training.check(run)
    with run:
        training.run(run)
