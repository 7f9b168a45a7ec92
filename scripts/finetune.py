"""Recover what pruning cost: finetune a pruned model, by its dense model or on text.

    pgprune finetune runs/NAME --distill --tokens 2M      # the dense model teaches
    pgprune finetune runs/NAME --local --distill          # each block by itself before that
    pgprune finetune runs/NAME                            # LoRA on its own calibration text
    pgprune finetune runs/NAME --data alpaca.json         # on instructions
    pgprune finetune DIR --distill --teacher MODEL --output DIR
    torchrun --nproc-per-node=2 -m pgprune.commands finetune runs/NAME --distill    # on two GPUs

MODEL is a finished run, which is pruned in memory, or a model: an export, a dense directory, a hub
id or `builtin`. The result is a new directory with the same number of parameters, which
transformers loads as it loads the export. Perplexity is measured before and after.

Ctrl-C ends the training early and keeps what was learned. After a kill, the same command with
--resume continues from the last checkpoint.
"""

if __name__ == "__main__":
    import startup

    startup.begin()


from typing import get_type_hints

from transformers.utils import logging

from pgprune.finetuning.finetune import Finetuning
from pgprune.finetuning.processes import one_voice
from pgprune.finetuning.settings import FinetuningSettings
from pgprune.finetuning.view import print_finetuning
from pgprune.utils.command_line import ArgumentParser, run_command
from pgprune.utils.process_ids import rank
from pgprune.utils.progress import note
from pgprune.utils.progress_view import showing

MAIN = (  # what most people set; --help shows the rest by group
    *("distill", "local", "teacher", "data", "tokens", "samples", "sequence_length"),
    *("train", "learning_rate", "validation", "evaluation", "output", "seed", "resume"),
)


def main() -> int:
    """Parses the options, finetunes, and prints the results."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with one_voice():
        arguments = make_parser().parse_args()
        settings = FinetuningSettings.from_arguments(arguments)
        with showing(settings.finetuning.quiet or rank() > 0) as console:
            try:
                finetuning = Finetuning(arguments.model, settings)
                note(f"finetuning {arguments.model} into {finetuning.output}")
                record = finetuning.run()
            except KeyboardInterrupt:
                note("interrupted; --resume continues from the last checkpoint")
                return 130
            print_finetuning(record, console)
    return 0


def make_parser() -> ArgumentParser:
    """Returns the parser of the options."""
    parser = ArgumentParser(__doc__, *get_type_hints(FinetuningSettings).values(), main=MAIN)
    parser.add_argument("model", metavar="MODEL", help="run or model to finetune")
    return parser


if __name__ == "__main__":
    run_command(main, replicas=True)
