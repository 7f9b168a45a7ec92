"""Commands that are killed at any call end as undisturbed ones do, and leave nothing behind."""

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.command import command
from helpers.finished_run import run_of_pattern
from helpers.kills import dies, left
from pgprune import PruningError
from pgprune.agents.registry import AGENTS
from pgprune.commands.benchmark_agents import BENCHMARK
from pgprune.commands.compare_methods import COMPARE
from pgprune.evaluation import latency
from pgprune.evaluation.latency import Measurement

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

Words = Callable[[Path], list[str]]
"""The words of a command that writes to a path."""

FEW = range(2, 40, 9)
MANY = range(1000)
AGENT_OPTIONS = {"evolution": ["--offspring=2"], "cma-es": ["--cma-population=4"]}
RESUMED = [name for name, entry in AGENTS.items() if entry.no_resume is None]
OTHERS = [name for name in AGENTS if name not in RESUMED]


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
@pytest.mark.parametrize("agent", OTHERS)
def test_training_that_cannot_be_resumed(agent, options, tmp_path):
    if not find_spec(AGENTS[agent].config.package):
        pytest.skip("the agent is not installed")

    def words(output: Path) -> list[str]:
        own = [f"--agent={agent}", "--total-timesteps=1", "--quiet", f"--output={output}"]
        return ["train_agent", *options, *own]

    def again(output: Path) -> list[str]:
        if output.exists():  # a sentence says so, and how to go on
            with pytest.raises(PruningError, match="exists"):
                command(*words(output))
            shutil.rmtree(output)
        return words(output)

    assert ends_alike(tmp_path, words, again, MANY[::9])


@pytest.mark.slow
def test_a_method(options, tmp_path):
    few = [option for option in options if "steps" not in option and "init" not in option]
    few = [option for option in few if "checkpoint" not in option]

    def words(output: Path) -> list[str]:
        return ["prune_baseline", *few, "--method=flap", "--quiet", f"--output={output}"]

    assert ends_alike(tmp_path, words, unless_there(words), MANY)


@pytest.mark.parametrize(
    ("option", "numbers"),
    [
        ("--format=hf", FEW),
        pytest.param("--format=hf", MANY, marks=pytest.mark.slow),
        pytest.param("--format=masked", MANY, marks=pytest.mark.slow),
        pytest.param("--portable", MANY, marks=pytest.mark.slow),
    ],
)
def test_an_export(option, numbers, tmp_path):
    run = run_of_pattern(tmp_path, "some")

    def words(output: Path) -> list[str]:
        return ["export", str(run.path), option, f"--output={output}", "--quiet"]

    assert ends_alike(tmp_path, words, unless_there(words), numbers)


@pytest.mark.slow
def test_latencies(tmp_path, monkeypatch):
    run = run_of_pattern(tmp_path, "some")
    monkeypatch.setattr(
        latency, "measure", lambda models, _: [Measurement(*models, 1, 8, [1.0], [1.0], 0)]
    )

    def words(output: Path) -> list[str]:
        return ["benchmark_inference", str(run.path), f"--output={output}", "--quiet"]

    assert ends_alike(tmp_path, words, unless_there(words), MANY)


@pytest.mark.slow
def test_an_evaluation(tmp_path):
    """It adds whole lines: what was measured stays, and a repeated command measures all again."""
    run = run_of_pattern(tmp_path, "some")
    few = ["--evaluation-windows=2", "--sequence-length=16", "--quiet"]
    words = ["evaluate", str(run.path), *few, f"--output={tmp_path}/output.jsonl"]
    before, kills = left(tmp_path), 0
    while dies(lambda: command(*words), kills):
        kills += 1
    found = left(tmp_path)
    lines, of_run = found.pop("output.jsonl"), found.pop("run/evaluations.jsonl")
    assert kills and found == before, "nothing else"
    assert lines[-2:] == of_run[-2:], "of code and of prose"
    assert all(line in lines[-2:] for line in lines + of_run)


def test_a_check_writes_nothing(tmp_path):
    run = run_of_pattern(tmp_path, "some")
    command("export", str(run.path), "--quiet")
    before = left(tmp_path)
    assert not dies(lambda: command("check", str(run.path), "--quiet"), 0), "it has changed a file"
    assert left(tmp_path) == before


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
