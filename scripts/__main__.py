"""The installed command ``pgprune``: imports and runs the command that is asked for."""

import sys
from importlib import import_module
from typing import NoReturn

from pgprune import PruningError, __version__
from pgprune.commands.startup import begin
from pgprune.utils.command_line import run_command
from pgprune.utils.command_names import COMMANDS, program

USAGE = """usage: pgprune COMMAND [options]

Structural pruning of large language models as a reinforcement-learning problem.

  analyze          look at a model before: what it is made of and needs most
  make             the whole way: search, recover, export, with a table of stages
  train            learn which units of a model to keep, by an agent
  prune            prune by an importance metric or another method, without learning
  export           write the pruned model of a run for transformers, vLLM or llama.cpp
  language         take the language part out of a model of images, or put it back
  check            check that runs, exports and models are whole and load
  evaluate         measure perplexity and zero-shot accuracy of models and runs
  finetune         recover what pruning cost: distillation, or LoRA on text
  bench-inference  measure speed and memory of pruned models beside the dense one
  compare          compare pruning methods at several rates
  benchmark        compare agents at equal numbers of mask evaluations

`pgprune train` prunes a small model that is built in, in a few minutes on a laptop.
`pgprune COMMAND --help` explains the options of a command."""


def main() -> NoReturn:
    """Runs the command that the first word names.

    Raises:
        SystemExit: always, with the command's exit status.
    """
    # No argparse: it would have to know the options of all commands.
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        run_command(lambda: answer(name), replicas=True)  # exits
    started = sys.argv[0]
    first = "pgprune" if started.endswith("__main__.py") else program(started)
    sys.argv = [f"{first} {name}", *sys.argv[2:]]  # from which messages spell other commands
    # Imported only now: torch and transformers take seconds.
    begin()
    command = import_module(f"pgprune.commands.{COMMANDS[name]}")
    run_command(command.main, replicas=name in ("train", "finetune"))


def answer(word: str) -> None:
    """Prints the commands or the version.

    Raises:
        PruningError: the word asks for neither.
    """
    if word not in ("-h", "--help", "--version"):
        known = ", ".join(COMMANDS)
        raise PruningError(f"pgprune has no command {word!r}; choose one of {known}")
    print(f"pgprune {__version__}" if word == "--version" else USAGE)


if __name__ == "__main__":
    main()
