"""Look at a model before it is pruned: what it is made of, and which parts it needs most.

    pgprune analyze MODEL --output DIR
    pgprune analyze MODEL --windows 16 --calibration c4       # surer, on other text
    pgprune analyze MODEL --target "memory<=6GB@8x8192"       # which prune rate that needs
    pgprune analyze MODEL --no-sensitivity --batch-size 8     # counts only, in seconds

It counts parameters and memory by kind and layer, says which prune rate a smaller model needs, and
measures how much the loss rises when a single layer keeps 75, 50 or 0 % of its units. Of a run or
an export it counts what is left.
"""

if __name__ == "__main__":
    import startup

    startup.begin()


from pathlib import Path

from transformers.utils import logging

from pgprune.analysis.analyze import Analysis, AnalysisConfig
from pgprune.analysis.report import (
    print_sections,
    sensitivity_section,
    size_sections,
    write_report,
)
from pgprune.errors import printable
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.command_names import command_words
from pgprune.utils.progress_view import showing

MAIN = (
    "target",
    "granularity",
    "windows",
    "calibration",
    "sensitivity",
    "batch_size",
    "context",
    "output",
)


def main() -> None:
    """Parses the options, analyzes, and prints and writes the results."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    arguments = make_parser().parse_args()
    config = from_arguments(AnalysisConfig, arguments)
    with showing(config.quiet, results=True) as console:
        analysis = Analysis(arguments.model, config)
        print_sections(size_sections(analysis), console)
        found = analysis.sensitivities()
        if found:
            print_sections([sensitivity_section(analysis, found)], console)
        if config.output is not None:
            write_report(analysis, found, command_words(), Path(config.output))
            where = printable(config.output)
            console.print(f"\nwritten to {where}", soft_wrap=True, markup=False)


def make_parser() -> ArgumentParser:
    """Returns the parser of the options."""
    parser = ArgumentParser(__doc__, AnalysisConfig, main=MAIN)
    parser.add_argument("model", metavar="MODEL", help="model, export or run to look at")
    return parser


if __name__ == "__main__":
    run_command(main)
