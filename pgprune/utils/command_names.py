"""The names of the commands: installed, ``pgprune export``; in a checkout, a script as well."""

import re
import shlex
import shutil
import sys
from pathlib import Path

COMMANDS = {
    "analyze": "analyze",
    "make": "make",
    "train": "train_agent",
    "prune": "prune_baseline",
    "export": "export",
    "language": "language",
    "check": "check",
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
    script = sys.argv[0].endswith(".py")
    return ["python", *sys.argv] if script else [*shlex.split(sys.argv[0]), *sys.argv[1:]]


def program(path: str) -> str:
    """Returns a program as it is typed: its name if the shell finds it, else its path."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the directory is gone, which run_command says
        return shlex.quote(path)
    # Not resolved: python of a virtual environment is a link to the python that it was made with.
    file, found = Path(path).absolute(), shutil.which(Path(path).name)
    if found is not None and Path(found).absolute() == file:
        return file.name
    return shlex.quote(str(file.relative_to(here) if file.is_relative_to(here) else file))


def spelled(text: str) -> str:
    """Spells the commands that a text names as this process was started.

    Args:
        text: names commands as they are installed, ``pgprune export RUN``.

    Returns:
        The text with commands that can be typed as they are: ``python scripts/export.py RUN`` where
        a script was started, and paths where the shell would not find a program.
    """
    script = Path(sys.argv[0])
    if script.suffix != ".py":
        first = sys.argv[0].rpartition(" ")[0] or "pgprune"
        return _MENTIONED.sub(lambda name: f"{first} {name[1]}", text)
    if script.stem not in COMMANDS.values():
        return text
    python = program(sys.executable)

    def by_script(name: re.Match[str]) -> str:
        return f"{python} {shlex.quote(str(script.with_name(f'{COMMANDS[name[1]]}.py')))}"

    return _MENTIONED.sub(by_script, text)
