"""Prune a language model with an agent that learns which units to keep.

    pgprune train --agent reinforce --model DIR --prune-rate 0.3
    pgprune train --prune-rate 0.3 --repair least-squares --export hf
    pgprune train --agent auto --prune-rates 0.1 0.2 0.3 0.4    # one search, a model of each
    pgprune train --resume runs/NAME
    torchrun --nproc-per-node=2 -m pgprune.commands train --model DIR    # replicas share the masks

Without options it prunes the built-in model by 40 % in a few minutes on a laptop's CPU.
"""

if __name__ == "__main__":
    import startup

    startup.begin()

import argparse

from rich.console import Console
from transformers.utils import logging

from pgprune.agents.training.config import TrainingRunConfig
from pgprune.agents.training.loaded import Loaded
from pgprune.agents.training.rates import check_sweep, resumed_sweep
from pgprune.agents.training.recommended import recommended
from pgprune.agents.training.replicas import serve, team_of
from pgprune.agents.training.results import export_once, next_commands
from pgprune.agents.training.settings import Settings, check_resume, resumed
from pgprune.agents.training.sweep import SweepTraining
from pgprune.agents.training.sweep_results import next_of_sweep, print_candidates
from pgprune.agents.training.train import Training
from pgprune.errors import PruningError, ResourceError
from pgprune.runs.files import check_output
from pgprune.runs.run import Run
from pgprune.runs.sweep import Sweep, is_sweep
from pgprune.runs.view import print_next, print_results
from pgprune.utils.command_line import ArgumentParser, run_command
from pgprune.utils.command_names import command_words
from pgprune.utils.files import user_path
from pgprune.utils.memory import within_memory
from pgprune.utils.process_ids import rank
from pgprune.utils.progress import note
from pgprune.utils.progress_view import showing


def main() -> int:
    """Parses the options, trains or resumes, and prints the results."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # Under torchrun all processes run this command; only the main one has options and prints.
    if rank() > 0:
        return serve()
    arguments = make_parser().parse_args()
    chosen = recommended(arguments)
    settings = Settings.from_arguments(argparse.Namespace(**vars(arguments) | chosen))
    with showing(settings.run.quiet) as console:
        if settings.run.resume is not None:
            check_resume(arguments)
            if is_sweep(user_path(settings.run.resume)):
                return resume_sweep(settings.run, console)
            return resume(settings.run, console)
        if settings.sweep.prune_rates is not None:
            check_sweep(settings, arguments)
        check_output(settings.run.output)
        if chosen:
            words = (f"--{name.replace('_', '-')} {value}" for name, value in chosen.items())
            note(f"agent {settings.agent.agent} chooses {' '.join(words)}")
        if settings.sweep.prune_rates is not None:
            return train_sweep(settings, None, console)
        return train(settings, None, console)


def make_parser() -> ArgumentParser:
    """Returns the parser of the options."""
    parser = ArgumentParser(__doc__)
    Settings.add_to(parser)
    return parser


def resume(asked: TrainingRunConfig, console: Console) -> int:
    """Resumes a run; a finished one is only exported, if that is asked for."""
    run = Run.open(str(asked.resume))
    # Nobody writes to a finished run, unless a kill has left its lock; its disk may be read-only.
    if run.finished and not run.has_lock:
        return resume_opened(run, asked, console)
    with run:
        return resume_opened(run, asked, console)


def resume_opened(run: Run, asked: TrainingRunConfig, console: Console) -> int:
    """Resumes a run that no other process writes to."""
    settings = resumed(run, asked.export, asked.ray_actors)
    if settings.sweep.prune_rates is not None and not run.finished:
        whole = run.path.parent
        raise PruningError(
            f"{run.path} is a part of the sweep {whole}; resume that, --resume {whole}"
        )
    if run.finished:
        note(f"{run.path} is finished; its results are in {run.path}/results.json")
        return finish(run, settings.run.export)
    if not run.has_checkpoint:
        note(f"{run.path} has no checkpoint yet, so it starts over")
    return train(settings, run, console)


def train(settings: Settings, run: Run | None, console: Console) -> int:
    """Trains a new run, or the rest of an interrupted one."""
    try:
        with within_memory(), team_of(settings) as team:
            # Before the run's directory, whose config holds what training decides (the executor).
            loaded = Loaded(settings, team)
            if run is None:
                sections, command = settings.sections(loaded.decided()), command_words()
                run = Run.create(settings.run.output, sections, command, settings.name)
            # The run may be one that another version, model or text began.
            loaded.check(run)
            note(f"run {run.path}")
            with run:
                results = Training(loaded).run(run)
        del loaded  # and the model with it, which an export loads again
    except KeyboardInterrupt:
        return interrupted(run)
    except ResourceError as error:
        if run is None or not run.resumable:
            raise  # there is no checkpoint to resume from
        remedy = f"resume from the last checkpoint with --resume {run.path}"
        raise PruningError(f"{error}; {remedy}") from error
    print_results(results, console)
    status = finish(run, settings.run.export) if results["completed"] else 0
    print_next(next_commands(results, run), console)
    return status


def train_sweep(settings: Settings, sweep: Sweep | None, console: Console) -> int:
    """Trains the runs of a new sweep, or the rest of an interrupted one."""
    try:
        with within_memory():
            training = SweepTraining(settings)
            if sweep is None:
                sections, command = settings.sections(training.loaded.decided()), command_words()
                sweep = Sweep.create(settings.run.output, sections, command, settings.name)
            training.loaded.check(sweep)
            note(f"sweep {sweep.path}")
            with sweep:
                completed = training.run(sweep, command_words())
        del training
    except KeyboardInterrupt:
        return interrupted(sweep)
    except ResourceError as error:
        if sweep is None:
            raise
        raise PruningError(f"{error}; resume with --resume {sweep.path}") from error
    print_candidates(sweep.results, console)
    if not completed:
        return interrupted(sweep)
    runs = [Run.open(sweep.path_at(rate)) for rate in sweep.rates]
    status = next(filter(None, (finish(run, settings.run.export) for run in runs)), 0)
    print_next(next_of_sweep(sweep), console)
    return status


def resume_sweep(asked: TrainingRunConfig, console: Console) -> int:
    """Resumes a sweep; the runs of a finished one are only exported, if that is asked for."""
    sweep = Sweep.open(str(asked.resume))
    settings = resumed_sweep(sweep, asked.export)
    if not sweep.finished:
        return train_sweep(settings, sweep, console)
    note(f"{sweep.path} is finished; its runs and their table, candidates.md, are in it")
    runs = [Run.open(sweep.path_at(rate)) for rate in sweep.rates]
    return next(filter(None, (finish(run, settings.run.export) for run in runs)), 0)


def finish(run: Run, format: str | None) -> int:
    """Exports a finished run, if asked to."""
    try:
        if format is not None:
            directory = export_once(run, format)
            note(f"\nthe pruned model is in {directory}")
    except KeyboardInterrupt:
        return interrupted(run)
    return 0


def interrupted(run: Run | None) -> int:
    """Prints how to resume; returns the exit status."""
    advice = f"; resume with --resume {run.path}" if run and (run.resumable or run.finished) else ""
    note(f"interrupted{advice}")
    return 130


if __name__ == "__main__":
    run_command(main, replicas=True)
