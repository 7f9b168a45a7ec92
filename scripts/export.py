"""Turn a finished run into a model that ordinary tools load.

    python scripts/export.py runs/NAME                                   # a smaller model
    python scripts/export.py runs/NAME --format masked --output DIR      # dense shapes with zeros

Weights, tokenizer and a card with the run's numbers appear together, or not at all.
"""

import shlex

from rich.console import Console
from transformers.utils import logging

from pgprune.cli import ArgumentParser, from_arguments, run_command
from pgprune.export import ExportConfig, export
from pgprune.run import Run


def main() -> None:
    """Parses the options, exports, and says where the model lies."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    parser = ArgumentParser(__doc__, ExportConfig)
    parser.add_argument("run", metavar="RUN", help="directory of a finished run")
    arguments = parser.parse_args()
    output = export(Run.open(arguments.run), from_arguments(ExportConfig, arguments))
    size = sum(file.stat().st_size for file in output.glob("*.safetensors"))
    console = Console(highlight=False)
    console.print(f"{shlex.quote(str(output))}: {size / 1e6:,.1f} MB of weights", soft_wrap=True)
    console.print(f"its README.md says how to load it: {output / 'README.md'}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
