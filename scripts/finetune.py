"""Recover what pruning cost: finetune a pruned model by LoRA, and merge that into its weights.

    python scripts/finetune.py runs/NAME                            # on its own calibration text
    python scripts/finetune.py runs/NAME --data alpaca.json         # on instructions
    python scripts/finetune.py DIR --data tatsu-lab/alpaca --output DIR

MODEL is a finished run, whose mask is cut out of its model in memory, or a model: exported by
export.py, dense, a hub id or `builtin`. The result is a new directory with as many parameters,
which transformers loads like an exported one. Perplexity is measured before and after.

Ctrl-C ends the training early and keeps what was learned. After a kill, the same command with
--resume goes on from the last checkpoint.
"""

from rich.console import Console
from transformers.utils import logging

from pgprune.finetuning.config import FinetuningConfig
from pgprune.finetuning.finetune import Finetuning
from pgprune.finetuning.instructions import TrainingDataConfig
from pgprune.finetuning.lora import LoraConfig
from pgprune.finetuning.view import FinetuningView, print_finetuning
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command


def main() -> int:
    """Parses the options, finetunes, and prints what came of it."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    parser = ArgumentParser(__doc__, FinetuningConfig, TrainingDataConfig, LoraConfig)
    parser.add_argument("model", metavar="MODEL", help="what to finetune")
    arguments = parser.parse_args()
    config = from_arguments(FinetuningConfig, arguments)
    console = Console(quiet=config.quiet, highlight=False)
    view = FinetuningView("finetuning", quiet=config.quiet, console=console)
    data = from_arguments(TrainingDataConfig, arguments)
    lora = from_arguments(LoraConfig, arguments)
    try:
        finetuning = Finetuning(arguments.model, config, data, lora, view)
        console.print(f"finetuning {arguments.model} into {finetuning.output}", markup=False)
        record = finetuning.run()
    except KeyboardInterrupt:
        console.print("interrupted before the end; --resume goes on from the last checkpoint")
        return 130
    print_finetuning(record, console)
    return 0


if __name__ == "__main__":
    run_command(main)
