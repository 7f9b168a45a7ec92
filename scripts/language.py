"""Take the language part out of a model of text and images, or put it back when it is pruned.

    pgprune language WHOLE --output PART                     # a causal LM, to prune
    pgprune language WHOLE --pruned runs/NAME/hf --output SMALLER

What reads images stays as it is. Prune the part with --scope uniform, or export it with --uniform.
"""

if __name__ == "__main__":
    import startup

    startup.begin()


import shlex
from pathlib import Path

from transformers.utils import logging

from pgprune.export.language_part import LanguagePartConfig, put_back, take_out
from pgprune.runs.model_card import public_name
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.progress import note
from pgprune.utils.progress_view import showing


def main() -> None:
    """Parses the options, writes the new directory, and prints where it is."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    arguments = make_parser().parse_args()
    config: LanguagePartConfig = from_arguments(LanguagePartConfig, arguments)
    source, pruned = arguments.model, config.pruned
    ending = "language" if pruned is None else "pruned"
    output = Path(config.output or f"{Path(public_name(source)).name}-{ending}")
    with showing(config.quiet):
        count = take_out(source, output) if pruned is None else put_back(source, pruned, output)
        note(f"{shlex.quote(str(output))}: {count:,} parameters")
        if pruned is None:
            note(f"prune it: pgprune train --scope uniform --model {shlex.quote(str(output))}")


def make_parser() -> ArgumentParser:
    """Returns the parser of the options."""
    parser = ArgumentParser(__doc__, LanguagePartConfig, main=())
    parser.add_argument("model", metavar="MODEL", help="a model of text and images")
    return parser


if __name__ == "__main__":
    run_command(main)
