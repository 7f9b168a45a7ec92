"""Make a smaller model, the whole way: search, recovery by the dense model, export, evaluation.

    pgprune make MODEL --prune-rate 0.3 --output DIR
    pgprune make MODEL --target "parameters<=1B" --recovery-minutes 60 --output DIR
    pgprune make MODEL --prune-rate 0.3 --recovery-minutes 60 --dry-run
    pgprune make --resume DIR

Every stage has a directory below DIR, and DIR/README.md has the table of what each has cost and
reached. After Ctrl-C or a kill, --resume continues where it was; Ctrl-C in the recovery ends it
early and keeps what was learned.
"""

if __name__ == "__main__":
    import startup

    startup.begin()


import shlex
from pathlib import Path

from rich.console import Console
from transformers.utils import logging

from pgprune.budget.problem import PruningConfig
from pgprune.data.stream import DataConfig
from pgprune.errors import PruningError, ResourceError
from pgprune.making.config import MakeConfig, resumed_alone
from pgprune.making.make import Make, Plan
from pgprune.making.steps import steps
from pgprune.making.table import table
from pgprune.making.view import print_made, print_plan
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.command_names import command_words, spelled
from pgprune.utils.progress import note
from pgprune.utils.progress_view import showing

MAIN = (
    *("prune_rate", "target", "recovery_minutes", "formats", "calibration", "evaluation", "output"),
    *("dry_run", "resume", "seed"),
)


def main() -> int:
    """Parses the options, makes the model or resumes, and prints the table."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    arguments = make_parser().parse_intermixed_args()
    config = from_arguments(MakeConfig, arguments)
    with showing(config.quiet, results=config.dry_run) as console:
        if config.resume is not None:
            resumed_alone(arguments)
            return work(Make.open(Path(config.resume)), console)
        if arguments.model is None:
            raise PruningError("there is no model to make smaller; give MODEL, or --resume DIR")
        plan = Plan(arguments.model, config, arguments)
        print_plan(steps(plan.forecast, config), console)
        if config.dry_run:
            return 0
        make = Make.create(plan, command_words())
        del plan  # the search takes over its model
        return work(make, console)


def work(make: Make, console: Console) -> int:
    """Does the stages that are left, and prints what came of them."""
    again = f"resume with pgprune make --resume {shlex.quote(str(make.path))}"
    try:
        completed = make.run()
    except KeyboardInterrupt:
        completed = False
    except ResourceError as error:
        raise PruningError(f"{error}; then {again}") from error
    if not completed:
        note(f"interrupted; {spelled(again)}")
        return 130
    print_made(make.path, table(make.path, make.state), make.state.config.formats, console)
    return 0


def make_parser() -> ArgumentParser:
    """Returns the parser of the options."""
    parser = ArgumentParser(__doc__, MakeConfig, DataConfig, PruningConfig, main=MAIN)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="dense model to make smaller")
    return parser


if __name__ == "__main__":
    run_command(main)
