"""The commands run by the tests, in this process or in another; and what a run leaves."""

import json
import runpy
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.forked import Forked
from pgprune.utils.command_line import run_command

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCRIPT = SCRIPTS / "train_agent.py"


class Crash(BaseException):
    """Stands in for kill -9: nothing of ours handles it."""


def command(name: str, *words: object) -> int | None:
    """Runs a script in this process; returns its exit status."""
    script = str(SCRIPTS / f"{name}.py")
    main = runpy.run_path(script)["main"]
    before, sys.argv = sys.argv, [script, *map(str, words)]
    try:
        return main()
    finally:
        sys.argv = before


def refused(name: str, *words: object) -> None:
    """Runs a script that refuses its options with exit status 2, after a line on stderr."""
    with pytest.raises(SystemExit) as error:
        run_command(lambda: command(name, *words))
    assert error.value.code == 2


def as_options(arguments: Mapping[str, object]) -> list[str]:
    """Settings as the words of a command."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]


def train(*words: str) -> int | None:
    """Runs ``train_agent.py`` in this process; returns its exit status."""
    return command("train_agent", *words)


def start(*words: str) -> Forked:
    """Starts ``train_agent.py`` in another process."""
    return Forked([sys.executable, str(SCRIPT), *words], caught=True)


def wait_for(condition: Callable[[], Any], process: Forked) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def logged(run: Path) -> int:
    """Lines of progress.csv on the disk."""
    progress = run / "progress.csv"
    return len(progress.read_text().splitlines()) if progress.exists() else 0


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def assert_same_run(run: Path, other: Path) -> None:
    """Everything that was learned is the same, bit for bit."""
    a, b = (load_file(path / "mask.safetensors") for path in (run, other))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert (run / "progress.csv").read_text() == (other / "progress.csv").read_text()
    assert results(run)["perplexity"] == results(other)["perplexity"]
    assert results(run)["tokens"] == results(other)["tokens"]
