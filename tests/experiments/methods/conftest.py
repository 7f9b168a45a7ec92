"""The command in this process, and a small comparison that it has made."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from helpers.comparison_toy import SCRIPT, Compare
from pgprune.experiments.method_runner import measure


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module, whose cells are measured in this process, without their plots."""
    spec = importlib.util.spec_from_file_location("compare_methods", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def here(tasks, work, workers, done):
        for task in tasks:
            measure(task, module.prune)
            done(task, "")
        return 0

    module.run_tasks = here
    module.plot_all = lambda *_: None  # which a test calls itself
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgprune.experiments.baseline.plot_kept_shares", lambda *_, **__: False)
        patch.setattr("pgprune.agents.training.train.plot", lambda *_: None)
        yield module


@pytest.fixture(scope="module")
def options(arguments) -> list[str]:
    """Options for a tiny model and text."""
    names = ("calibration", "evaluation", "batch_size", "sequence_length", "dtype")
    few = {name: arguments[name] for name in names} | {"evaluation_windows": 4, "timesteps": 1}
    text = [f"--{name.replace('_', '-')}={value}" for name, value in few.items()]
    return [*text, "--models", arguments["model"]]


@pytest.fixture(scope="module")
def compare(script, options) -> Compare:
    """Runs the command in this process."""

    def run(output: Path, *more: str) -> int:
        before, sys.argv = sys.argv, [str(SCRIPT), f"--output={output}", *options, *more]
        try:
            return script.main()
        finally:
            sys.argv = before

    return run


@pytest.fixture(scope="module")
def done(compare, tmp_path_factory) -> Path:
    """A comparison of three methods, one of which fails at the higher rate."""
    output = tmp_path_factory.mktemp("comparison")
    few = ["--methods", "random:method-samples=8", "flap:method-samples=8", "sleb:method-samples=8"]
    assert compare(output, *few, "--rates", "0.33", "0.5", "--seeds=2") == 0
    return output
