"""Turn a finished run into a model that ordinary tools load.

    pgprune export runs/NAME                                   # a smaller model
    pgprune export runs/SWEEP --at 0.3                         # of several rates: that one
    pgprune export runs/NAME --format masked --output DIR      # dense shapes with zeros
    pgprune export runs/NAME --uniform --round-to 32           # a stock architecture
    pgprune export runs/NAME --portable                        # for vLLM and SGLang
    pgprune export runs/NAME --repair least-squares            # weights refitted
    pgprune export runs/NAME --format gguf                     # for llama.cpp, Ollama

Weights, tokenizer and a card with the run's numbers appear together, or not at all.
"""

if __name__ == "__main__":
    import startup

    startup.begin()


import shlex
from pathlib import Path

from transformers.utils import logging

from pgprune.export.export import ExportConfig, export, parameters_in
from pgprune.runs.finished import FinishedRun
from pgprune.runs.sweep import AtConfig, run_at_rate
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.progress import note
from pgprune.utils.progress_view import showing


def main() -> None:
    """Parses the options, exports, and prints where the model is and how to load it."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    arguments = make_parser().parse_args()
    config = from_arguments(ExportConfig, arguments)
    with showing(config.quiet):
        run = run_at_rate(arguments.run, from_arguments(AtConfig, arguments).at)
        output = export(FinishedRun.open(run), config)
        size = sum(file.stat().st_size for file in output.iterdir() if file.is_file())
        count = parameters_in(output)
        note(f"{shlex.quote(str(output))}: {count:,} parameters, {size / 1e6:,.1f} MB")
        note(f"load it: {load_command(output)}")
        note(f"its numbers, and how they were obtained: {output / 'README.md'}")


def make_parser() -> ArgumentParser:
    """Returns the parser of the options."""
    parser = ArgumentParser(__doc__, AtConfig, ExportConfig, main=())
    parser.add_argument("run", metavar="RUN", help="directory of a finished run")
    return parser


def load_command(output: Path) -> str:
    """Returns the Python expression that loads an exported directory; of GGUF, the command."""
    if (file := output / "model.gguf").exists():
        return f"llama-cli -m {shlex.quote(str(file))}"
    # Stock architectures need no code of the export's own.
    remote = any(output.glob("modeling_*.py"))
    option = ", trust_remote_code=True" if remote else ""
    return f"AutoModelForCausalLM.from_pretrained({str(output)!r}{option})"


if __name__ == "__main__":
    run_command(main)
