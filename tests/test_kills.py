"""Commands that are killed at any call end as undisturbed ones do, and leave nothing behind."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.command import command
from helpers.finished_run import run_of_pattern
from helpers.kills import dies, left
from pgprune.agents.registry import AGENTS
from pgprune.commands.benchmark_agents import BENCHMARK
from pgprune.commands.compare_methods import COMPARE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

Words = Callable[[Path], list[str]]
"""The words of a command that writes to a path."""

FEW = range(2, 40, 9)
MANY = range(1000)
AGENT_OPTIONS = {"evolution": ["--offspring=2"], "cma-es": ["--cma-population=4"]}
RESUMED = [name for name, entry in AGENTS.items() if entry.no_resume is None]


def ends_alike(
    folder: Path,
    words: Words,
    again: Words,
    numbers: range,
    do: Callable[..., object] = command,
) -> int:
    """Kills a command at calls and repeats it; compares what all leave. Returns the kills."""
    expected = folder / "undisturbed" / "output"
    expected.parent.mkdir()
    assert not dies(lambda: do(*words(expected)), -1)
    kills = 0
    for number in numbers:
        output = folder / str(number) / "output"
        output.parent.mkdir()
        if not dies(lambda output=output: do(*words(output)), number):
            break
        if repeated := again(output):
            assert not dies(lambda repeated=repeated: do(*repeated), -1)
        assert left(output.parent) == left(expected.parent), number
        kills += 1
    return kills


def unless_there(words: Words) -> Words:
    """Repeats a command whose output appears whole, unless it has."""
    return lambda output: [] if output.exists() else words(output)


@pytest.mark.slow
@pytest.mark.parametrize("agent", RESUMED)
def test_training_and_its_export(agent, options, tmp_path):
    own = [*AGENT_OPTIONS.get(agent, []), "--total-timesteps=1", "--export=hf", "--quiet"]

    def words(output: Path) -> list[str]:
        return ["train_agent", *options, f"--agent={agent}", *own, f"--output={output}"]

    def again(output: Path) -> list[str]:
        resume = ["train_agent", f"--resume={output}", "--quiet"]
        return resume if output.exists() else words(output)

    assert ends_alike(tmp_path, words, again, MANY[::5])


@pytest.mark.slow
def test_a_method(options, tmp_path):
    few = [option for option in options if "steps" not in option and "init" not in option]
    few = [option for option in few if "checkpoint" not in option]

    def words(output: Path) -> list[str]:
        return ["prune_baseline", *few, "--method=flap", "--quiet", f"--output={output}"]

    assert ends_alike(tmp_path, words, unless_there(words), MANY)


@pytest.mark.parametrize("numbers", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_an_export(numbers, tmp_path):
    run = run_of_pattern(tmp_path, "some")

    def words(output: Path) -> list[str]:
        return ["export", str(run.path), f"--output={output}", "--quiet"]

    assert ends_alike(tmp_path, words, unless_there(words), numbers)


@pytest.mark.slow
def test_finetuning(options, tmp_path):
    run = run_of_pattern(tmp_path, "layer 0 and some")
    (tmp_path / "text.txt").write_text("thequickbrownfoxjumpsoverthelazydog" * 60)
    text = str(tmp_path / "text.txt")
    few = ["--evaluation-length=16", "--sequence-length=16", "--samples=16", "--batch-size=4"]

    def words(output: Path) -> list[str]:
        shared = [f"--data={text}", f"--evaluation={text}", *few, "--checkpoint-every=1", "--quiet"]
        return ["finetune", str(run.path), *shared, f"--output={output}"]

    def again(output: Path) -> list[str]:
        return ["finetune", *words(output)[1:], "--resume"]

    assert ends_alike(tmp_path, words, again, MANY[::3])


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [COMPARE, BENCHMARK])
def test_comparisons(experiment, arguments, tmp_path):
    shared = [f"--{key}={arguments[key]}" for key in ("calibration", "evaluation", "dtype")]
    shared += ["--batch-size=2", "--sequence-length=16", "--evaluation-windows=4", "--seeds=1"]
    if experiment is COMPARE:
        shared += [f"--models={arguments['model']}", "--rates=0.5", "--timesteps=1"]
        shared += ["--methods", "random:method-samples=8", "reinforce:init-samples=8"]
    else:
        shared += ["--total-timesteps=1", "--tasks", f"{arguments['model']}:0.5"]
        shared += ["--agents", "random-search:candidates=4,init-samples=8"]

    def words(output: Path) -> list[str]:
        return [f"--output={output}", *shared]

    def do(*words: str) -> object:
        return experiment.main(list(words), workers=0)

    assert ends_alike(tmp_path, words, words, MANY[::9], do)
