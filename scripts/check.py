"""Check that runs, exports and models are whole and unchanged, and that they load.

    pgprune check runs/NAME                       # all its files, and the exports in it
    pgprune check runs/NAME/hf MODEL

Digests, shapes and counts are compared, and each model is loaded and tried on a few tokens. The
exit status is 0 where nothing is wrong, and else 1.
"""

if __name__ == "__main__":
    import startup

    startup.begin()


from dataclasses import dataclass

from transformers.utils import logging

from pgprune.errors import printable
from pgprune.evaluation.check import findings
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.options import Config, option
from pgprune.utils.progress_view import showing


@dataclass(frozen=True)
class CheckConfig(Config):
    """Check: what is said."""

    quiet: bool = option(False, "print only what is wrong")


def main() -> int:
    """Parses the options, checks, and prints what was found."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    arguments = make_parser().parse_intermixed_args()
    config = from_arguments(CheckConfig, arguments)
    wrong = 0
    with showing(config.quiet, results=True) as console:
        for source in dict.fromkeys(arguments.sources):
            for found in findings(source):
                wrong += found.wrong
                if found.wrong or not config.quiet:
                    verdict = "WRONG" if found.wrong else "right"
                    text = f"{verdict}  {source}: {found.name}: {found.said}"
                    console.print(printable(text), soft_wrap=True, markup=False, highlight=False)
        if not config.quiet:
            console.print("nothing is wrong" if not wrong else f"{wrong} are wrong")
    return 1 if wrong else 0


def make_parser() -> ArgumentParser:
    """Returns the parser of the options."""
    parser = ArgumentParser(__doc__, CheckConfig, main=())
    parser.add_argument(
        "sources", metavar="RUN_OR_MODEL", nargs="+", help="directories, files or hub ids"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
