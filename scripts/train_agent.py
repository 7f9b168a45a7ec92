"""Prune a language model with an agent that learns which units to keep.

    python scripts/train_agent.py --agent reinforce --model DIR --prune-rate 0.3
    python scripts/train_agent.py --resume runs/NAME

Without options it prunes the built-in model by 40 % in a few minutes on a laptop's CPU.
"""

import sys

from rich.console import Console
from transformers.utils import logging

from pgprune.agents.results import next_commands
from pgprune.agents.settings import Settings, check_resume
from pgprune.agents.training import Training, resumed
from pgprune.cli import ArgumentParser, run_command
from pgprune.run import Run, check_output
from pgprune.view import TrainingView, print_results


def main() -> int:
    """Parses the options, trains or resumes, and prints the results."""
    logging.disable_progress_bar()
    parser = ArgumentParser(__doc__)
    Settings.add_to(parser)
    arguments = parser.parse_args()
    settings = Settings.from_arguments(arguments)
    console = Console(quiet=settings.run.quiet, highlight=False)
    if settings.run.resume is None:
        check_output(settings.run.output)
        return train(settings, None, console)
    check_resume(arguments)
    return resume(settings.run.resume, console)


def resume(path: str, console: Console) -> int:
    """Goes on with the run at ``path``, unless it is finished."""
    run = Run.open(path)
    if run.finished:
        console.print(f"{path} is finished; its results are in {path}/results.json")
        return 0
    if not run.has_checkpoint:
        console.print(f"{path} has no checkpoint yet, so it starts over")
    return train(resumed(run), run, console)


def train(settings: Settings, run: Run | None, console: Console) -> int:
    """Does a new run, or the rest of one."""
    view = TrainingView(settings.name, quiet=settings.run.quiet, console=console)
    try:
        training = Training(settings, view)
        if run is None:
            sections = settings.sections(training.decided())
            run = Run.create(settings.run.output, sections, ["python", *sys.argv], settings.name)
        training.check(run)
        console.print(f"run {run.path}")
        with run:
            results = training.run(run)
    except KeyboardInterrupt:
        console.print(f"interrupted; go on with --resume {run.path}" if run else "interrupted")
        return 130
    print_results(results, next_commands(results, run), console)
    return 0


if __name__ == "__main__":
    run_command(main)
