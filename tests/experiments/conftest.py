"""The commands in this process, and what each has measured once for all tests."""

import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.command import as_options
from helpers.experiments_toy import FEW, Command
from pgprune.commands.benchmark_agents import BENCHMARK
from pgprune.commands.compare_methods import COMPARE


@pytest.fixture(scope="session")
def text(arguments: dict[str, Any]) -> list[str]:
    """Options for a tiny text; 1 x 1024 tokens are 8 steps of 4 masks x 2 x 16 tokens."""
    names = ("calibration", "evaluation", "batch_size", "sequence_length", "dtype")
    few = {name: arguments[name] for name in names} | {"evaluation_windows": 4}
    return as_options(few)


@pytest.fixture(scope="session")
def comparison_options(text: list[str], arguments: dict[str, Any]) -> list[str]:
    return [*text, "--timesteps=1", "--models", arguments["model"]]


@pytest.fixture(scope="session")
def compare(comparison_options: list[str]) -> Command:
    """The command that compares methods, on one model."""

    def run(output: Path, *more: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "matplotlib", None)  # no figures, which take a while
            return COMPARE.main([f"--output={output}", *comparison_options, *more], workers=0)

    return run


@pytest.fixture(scope="session")
def compared(compare: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of three methods, one of which fails at the higher rate."""
    output = tmp_path_factory.mktemp("comparison")
    few = ["--methods", "random:method-samples=8", "flap:method-samples=8", "sleb:method-samples=8"]
    assert compare(output, *few, "--rates", "0.33", "0.5", "--seeds=2") == 0
    return output


@pytest.fixture(scope="session")
def task(arguments: dict[str, Any]) -> str:
    return f"{arguments['model']}:0.5"


@pytest.fixture(scope="session")
def benchmark_options(text: list[str], task: str) -> list[str]:
    return [*text, "--total-timesteps=1", "--seeds=1", "--tasks", task]


@pytest.fixture(scope="session")
def benchmark(benchmark_options: list[str]) -> Command:
    """The command that compares agents, on one task."""

    def run(output: Path, *more: str) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "matplotlib", None)  # no figures, which take a while
            words = [f"--output={output}", *benchmark_options, *more]
            return BENCHMARK.main(words, workers=0)

    return run


@pytest.fixture(scope="session")
def benchmarked(benchmark: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of two agents under two seeds."""
    output = tmp_path_factory.mktemp("benchmark")
    assert benchmark(output, *FEW, "--seeds=2") == 0
    return output
