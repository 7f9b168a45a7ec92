"""Prune a language model with a baseline: an importance metric or a whole method.

    pgprune prune --method wanda-sp --model DIR --prune-rate 0.3
    pgprune prune --method sleb --prune-rate 0.25 --export hf

The run directory is like that of pgprune train: export, evaluate and compare it in the same way.
"""

if __name__ == "__main__":
    import startup

    startup.begin()


import shlex

from transformers.utils import logging

from pgprune.experiments.baseline import Baseline, BaselineSettings
from pgprune.export.export import ExportConfig, export
from pgprune.runs.files import check_output
from pgprune.runs.finished import FinishedRun
from pgprune.runs.view import print_next, print_results
from pgprune.utils.command_line import ArgumentParser, run_command
from pgprune.utils.command_names import command_words
from pgprune.utils.progress import note
from pgprune.utils.progress_view import showing


def main() -> int:
    """Parses the options, prunes, and prints the results."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    settings = BaselineSettings.from_arguments(make_parser().parse_args())
    check_output(settings.run.output)  # before the model is loaded, which may take minutes
    with showing(settings.run.quiet) as console:
        try:
            run, results = Baseline(settings).run(command_words())
            print_results(results, console)
            if settings.run.export is not None:
                config = ExportConfig(format=settings.run.export)
                note(f"\nthe pruned model is in {export(FinishedRun.open(run.path), config)}")
        except KeyboardInterrupt:
            note("interrupted")
            return 130  # 128 + SIGINT, as shells report Ctrl-C
        path, model = shlex.quote(str(run.path)), shlex.quote(settings.model.model)
        smaller = f"pgprune export {path}    # the smaller model, for transformers"
        learn = f"pgprune train --model {model}    # let an agent do better"
        print_next([smaller, learn] if settings.run.export is None else [learn], console)
    return 0


def make_parser() -> ArgumentParser:
    """Returns the parser of the options."""
    parser = ArgumentParser(__doc__)
    BaselineSettings.add_to(parser)
    return parser


if __name__ == "__main__":
    run_command(main)
