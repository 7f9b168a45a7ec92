"""Recover what pruning cost: finetune a pruned model by LoRA, and merge that into its weights.

    pgprune finetune runs/NAME                            # on its own calibration text
    pgprune finetune runs/NAME --data alpaca.json         # on instructions
    pgprune finetune DIR --data tatsu-lab/alpaca --output DIR

MODEL is a finished run, which is pruned in memory, or a model: an export, a dense directory, a hub
id or `builtin`. The result is a new directory with the same number of parameters, which
transformers loads as it loads the export. Perplexity is measured before and after.

Ctrl-C ends the training early and keeps what was learned. After a kill, the same command with
--resume continues from the last checkpoint.
"""

if __name__ == "__main__":
    import startup

    startup.begin()


from transformers.utils import logging

from pgprune.finetuning.config import FinetuningConfig
from pgprune.finetuning.finetune import Finetuning
from pgprune.finetuning.instructions import TrainingDataConfig
from pgprune.finetuning.lora import LoraConfig
from pgprune.finetuning.view import print_finetuning
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.progress import note
from pgprune.utils.progress_view import showing

MAIN = (  # what most people set; --help shows the rest by group
    *("data", "evaluation", "epochs", "samples", "rank", "learning_rate", "sequence_length"),
    *("output", "seed", "resume"),
)


def main() -> int:
    """Parses the options, finetunes, and prints the results."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    arguments = make_parser().parse_args()
    config = from_arguments(FinetuningConfig, arguments)
    data = from_arguments(TrainingDataConfig, arguments)
    lora = from_arguments(LoraConfig, arguments)
    with showing(config.quiet) as console:
        try:
            finetuning = Finetuning(arguments.model, config, data, lora)
            note(f"finetuning {arguments.model} into {finetuning.output}")
            record = finetuning.run()
        except KeyboardInterrupt:
            note("interrupted; --resume continues from the last checkpoint")
            return 130
        print_finetuning(record, console)
    return 0


def make_parser() -> ArgumentParser:
    """Returns the parser of the options."""
    parser = ArgumentParser(__doc__, FinetuningConfig, TrainingDataConfig, LoraConfig, main=MAIN)
    parser.add_argument("model", metavar="MODEL", help="run or model to finetune")
    return parser


if __name__ == "__main__":
    run_command(main)
