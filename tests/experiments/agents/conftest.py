"""The command in this process, and a small benchmark that it has made."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from helpers.benchmark_toy import FEW, ROOT, load
from pgprune.experiments import agent_runner as benchmarking

Benchmark = Callable[..., int]


def here(tasks, work, workers, done):
    """In place of ``run_tasks``: does them in this process."""
    for task in tasks:
        work(task)
        done(task, "")
    return 0


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Iterator[None]:
    """Cells are measured here, without the plots of their runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarking, "run_tasks", here)
        patch.setattr("pgprune.agents.training.train.plot", lambda *_: None)
        patch.setattr("pgprune.experiments.agent_report.plot_all", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def options(arguments) -> list[str]:
    """Options for a tiny text; 1 x 1024 tokens are 8 steps of 4 masks x 2 x 16 tokens."""
    names = ("calibration", "evaluation", "batch_size", "sequence_length", "dtype")
    few = {name: arguments[name] for name in names}
    few |= {"evaluation_windows": 4, "total_timesteps": 1, "seeds": 1}
    return [f"--{name.replace('_', '-')}={value}" for name, value in few.items()]


@pytest.fixture(scope="module")
def task(arguments) -> str:
    return f"{arguments['model']}:0.5"


@pytest.fixture(scope="module")
def run_script(options) -> Callable[..., int]:
    """Runs a script in this process with these options."""

    def run(script: Path, output: Path, *more: str) -> int:
        before, sys.argv = sys.argv, [str(script), f"--output={output}", *options, *more]
        try:
            return load(script).main()
        finally:
            sys.argv = before

    return run


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """benchmarks/tune_agents.py as a module."""
    return load(ROOT / "benchmarks" / "tune_agents.py")


@pytest.fixture(scope="module")
def benchmark(run_script, task) -> Benchmark:
    """Runs the command in this process on one task."""

    def run(output: Path, *more: str) -> int:
        return run_script(ROOT / "scripts" / "benchmark_agents.py", output, "--tasks", task, *more)

    return run


@pytest.fixture(scope="module")
def done(benchmark, in_this_process, tmp_path_factory) -> Path:
    """A benchmark of two agents under two seeds."""
    output = tmp_path_factory.mktemp("benchmark")
    assert benchmark(output, *FEW, "--seeds=2") == 0
    return output
