"""scripts/train_agent.py run by the tests: in this process or in one of its own."""

import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_agent.py"


class Crash(BaseException):
    """Stands in for kill -9: nothing of ours handles it."""


def train(*options: str) -> int:
    """Runs the command in this process; returns its exit status."""
    main = runpy.run_path(str(SCRIPT))["main"]
    before, sys.argv = sys.argv, [str(SCRIPT), *options]
    try:
        return main()
    finally:
        sys.argv = before


def start(*options: str) -> subprocess.Popen[str]:
    """Starts the command in a process of its own."""
    command = [sys.executable, str(SCRIPT), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def logged(run: Path) -> int:
    """Lines of progress.csv on the disk."""
    progress = run / "progress.csv"
    return len(progress.read_text().splitlines()) if progress.exists() else 0


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
