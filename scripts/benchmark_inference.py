"""Measure how much faster and smaller models are than the first one on the command line.

    pgprune bench-inference DENSE PRUNED ...
    pgprune bench-inference builtin runs/NAME --output runs/NAME/latency
    pgprune bench-inference --shape 100m --prune-rates 0.3 0.5 --round-to 1 64

A model is `builtin`, a hub id, a directory (dense or exported) or a finished run. With --shape,
random weights and random masks stand in for models, so that nothing needs to be downloaded.
"""

if __name__ == "__main__":
    import startup

    startup.begin()


from pathlib import Path

from transformers.utils import logging

from pgprune.errors import printable
from pgprune.evaluation.latency import LatencyConfig, load_models, measure
from pgprune.evaluation.latency_report import make_report, print_report, write_report
from pgprune.surgery.random_models import ShapeConfig
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.command_names import command_words
from pgprune.utils.progress_view import showing


def main() -> None:
    """Parses the options, measures, and prints and writes the results."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    arguments = make_parser().parse_args()
    config = from_arguments(LatencyConfig, arguments)
    with showing(config.quiet, results=True) as console:
        models = load_models(arguments.models, from_arguments(ShapeConfig, arguments), config)
        report = make_report(models, measure(models, config), config, command_words())
        print_report(report, console)
        if config.output is not None:
            write_report(report, Path(config.output))
            where = printable(config.output)
            console.print(f"written to {where}", soft_wrap=True, markup=False)


def make_parser() -> ArgumentParser:
    """Returns the parser of the options."""
    parser = ArgumentParser(__doc__, LatencyConfig, ShapeConfig, main=())
    parser.add_argument("models", metavar="MODEL", nargs="*", help="the first is the reference")
    return parser


if __name__ == "__main__":
    run_command(main)
