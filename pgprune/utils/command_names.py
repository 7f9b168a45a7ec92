"""The names of the commands: installed, ``pgprune export``; in a checkout, a script as well."""

import re
import shlex
import sys
from pathlib import Path

COMMANDS = {
    "train": "train_agent",
    "prune": "prune_baseline",
    "export": "export",
    "evaluate": "evaluate",
    "finetune": "finetune",
    "bench-inference": "benchmark_inference",
    "compare": "compare_methods",
    "benchmark": "benchmark_agents",
}
"""The module of each command in ``pgprune.commands``, which is the folder ``scripts``."""

_MENTIONED = re.compile(rf"(?<![\w/])pgprune ({'|'.join(COMMANDS)})(?![\w-])")


def command_words() -> list[str]:
    """Returns the words that started this process, ``python`` or ``pgprune`` first."""
    first = [sys.argv[0]] if sys.argv[0].endswith(".py") else shlex.split(sys.argv[0])
    return [*(["python"] if first[0].endswith(".py") else []), *first, *sys.argv[1:]]


def spelled(text: str) -> str:
    """Spells the commands that a text names as this process was started.

    Args:
        text: names commands as they are installed, ``pgprune export RUN``.

    Returns:
        The same text, or where a script of a checkout was started, with
        ``python scripts/export.py RUN``.
    """
    script = Path(sys.argv[0])
    if script.suffix != ".py" or script.stem not in COMMANDS.values():
        return text

    def python(name: re.Match[str]) -> str:
        return shlex.join(["python", str(script.with_name(f"{COMMANDS[name[1]]}.py"))])

    return _MENTIONED.sub(python, text)
