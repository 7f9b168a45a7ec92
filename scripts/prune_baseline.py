"""Prune a language model with a baseline: an importance metric or a whole method.

    python scripts/prune_baseline.py --method wanda-sp --model DIR --prune-rate 0.3
    python scripts/prune_baseline.py --method sleb --prune-rate 0.25 --export hf

The run that it leaves is read, exported and compared like one of train_agent.py.
"""

import shlex
import sys

from rich.console import Console
from transformers.utils import logging

from pgprune.experiments.baseline import Baseline, BaselineSettings
from pgprune.export.export import ExportConfig, export
from pgprune.runs.finished import FinishedRun
from pgprune.runs.run import check_output
from pgprune.runs.view import TrainingView, print_next, print_results
from pgprune.utils.command_line import ArgumentParser, run_command


def main() -> int:
    """Parses the options, prunes, and prints the results."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    parser = ArgumentParser(__doc__)
    BaselineSettings.add_to(parser)
    settings = BaselineSettings.from_arguments(parser.parse_args())
    console = Console(quiet=settings.run.quiet, highlight=False)
    view = TrainingView(settings.name, quiet=settings.run.quiet, console=console)
    check_output(settings.run.output)
    try:
        run, results = Baseline(settings, view.note).run(["python", *sys.argv])
        print_results(results, console)
        if settings.run.export is not None:
            directory = export(FinishedRun.open(run.path), ExportConfig(format=settings.run.export))
            view.note(f"\nthe pruned model is in {directory}")
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    path, model = shlex.quote(str(run.path)), shlex.quote(settings.model.model)
    smaller = f"python scripts/export.py {path}    # the smaller model, for transformers"
    learn = f"python scripts/train_agent.py --model {model}    # let an agent do better"
    print_next([smaller, learn] if settings.run.export is None else [learn], console)
    return 0


if __name__ == "__main__":
    run_command(main)
