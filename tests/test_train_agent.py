"""scripts/train_agent.py as a user runs it: results, interruptions of every kind, mistakes."""

import csv
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pgprune.agents.reinforce import Reinforce
from pgprune.errors import PruningError
from pgprune.run import Run
from test_env import tiny_arguments

SCRIPT = Path(__file__).parents[1] / "scripts" / "train_agent.py"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny random model and text, and so few tokens a step that 60 steps take a second."""
    arguments = tiny_arguments(tmp_path_factory.mktemp("tiny"))
    arguments |= {"evaluation_windows": 8, "init_samples": 16, "checkpoint_every": 7}
    arguments["total_timesteps"] = 4  # 4 x 1024 tokens are 64 steps of 2 masks x 2 x 16 tokens
    return [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]


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


@pytest.fixture(scope="module")
def undisturbed(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    torch.set_num_threads(1)
    assert train(*options, f"--output={run}") == 0
    return run


def test_a_run_leaves_what_the_design_says(undisturbed: Path) -> None:
    files = {str(path.relative_to(undisturbed)) for path in undisturbed.rglob("*")}
    assert {
        "config.yaml",
        "command.txt",
        "versions.txt",
        "progress.csv",
        "tensorboard",
        "checkpoint/checkpoint.safetensors",
        "mask.safetensors",
        "results.json",
        "plots/learning_curve.png",
        "plots/kept_shares.png",
    } <= files
    found = results(undisturbed)
    assert found["prune_rate"] == {"requested": 0.5, "achieved": 0.5}
    assert found["perplexity"].keys() >= {"dense", "initial", "masked", "pruned"}
    assert found["mask_evaluations"] == 4
    assert found["parameters"]["pruned"] == found["parameters"]["dense"] - (
        found["parameters"]["prunable"] // 2
    )
    steps = [int(row["step"]) for row in csv.DictReader((undisturbed / "progress.csv").open())]
    assert steps == list(range(1, 65))
    masks = load_file(undisturbed / "mask.safetensors")
    assert masks.keys() == {"mask", "initial", "best", "probabilities"}


def test_the_same_seed_gives_the_same_run(
    options: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    train(*options, f"--output={tmp_path / 'again'}")
    assert_same_run(undisturbed, tmp_path / "again")
    train(*options, f"--output={tmp_path / 'other'}", "--seed=1")
    masks = [load_file(run / "mask.safetensors") for run in (undisturbed, tmp_path / "other")]
    assert not torch.equal(masks[0]["probabilities"], masks[1]["probabilities"])


class Crash(BaseException):
    """Stands in for kill -9: nothing of ours handles it."""


@pytest.mark.parametrize("moment", [1, 7, 8, 36, 64])
def test_resume_after_a_crash_in_any_step(
    moment: int,
    options: list[str],
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Reinforce._learn_step

    def crash(self: Reinforce, *arguments: int) -> dict[str, float]:
        if self.steps + 1 == moment:
            raise Crash
        return step(self, *arguments)

    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Reinforce, "_learn_step", crash)
        train(*options, f"--output={run}")
    assert train(f"--resume={run}") == 0
    assert_same_run(undisturbed, run)


def test_kill_minus_9_again_and_again(
    options: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    checkpoint = run / "checkpoint" / "checkpoint.safetensors"
    moments = [
        lambda: run.exists(),  # before the first checkpoint
        lambda: checkpoint.exists(),
        lambda: logged(run) > 20,
    ]
    arguments = [*options, f"--output={run}"]
    for moment in moments:
        process = start(*arguments)
        wait_for(moment, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (run / "results.json").exists()
        arguments = [f"--resume={run}"]
    process = start(*arguments)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert_same_run(undisturbed, run)


def test_resume_without_a_checkpoint_starts_over_and_says_so(
    options: list[str], undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def crash(*arguments: Any) -> None:
        raise Crash

    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Run, "save_checkpoint", crash)
        train(*options, f"--output={run}")
    assert train(f"--resume={run}") == 0
    assert "starts over" in capsys.readouterr().out
    assert_same_run(undisturbed, run)


def test_resume_of_a_finished_run_says_so(
    undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(f"--resume={undisturbed}") == 0
    assert "finished" in capsys.readouterr().out


def test_ctrl_c_saves_and_evaluates_what_was_learned(
    options: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    long = [*options, f"--output={run}", "--total-timesteps=4000"]
    process = start(*long)
    wait_for(lambda: logged(run) > 20, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "learned mask" in out
    assert f"--resume {run}" in out
    found = results(run)
    assert not found["completed"]
    assert 0 < found["mask_evaluations"] < 4000
    assert found["perplexity"]["masked"]
    assert not Run.open(run).finished


def test_bad_input_gets_one_line_and_status_2(options: list[str], tmp_path: Path) -> None:
    process = start(*options, "--prune-rate=1.5")
    out, err = process.communicate()
    assert process.returncode == 2
    assert out == ""
    assert re.fullmatch(r"error: .*prune-rate.*below 1.*\n", err)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--prune-rate=half", "a number"),
        ("--prune-rate=0.999", "leaves nothing"),
        ("--model=nowhere/", "nowhere"),
        ("--device=cuda:9", "cuda:9"),
        ("--calibration=absent.txt", "absent.txt"),
        ("--init=layerwise-ppl", "granularity"),
        ("--masks-per-step=1", "masks_per_step"),
        ("--sequence-length=100000", "context"),
        ("--agent=alphago", "reinforce"),
        ("--nonsense=1", "nonsense"),
    ],
)
def test_mistakes_are_refused_before_a_run_exists(
    option: str, says: str, options: list[str], tmp_path: Path
) -> None:
    with pytest.raises(PruningError, match=says):
        train(*options, f"--output={tmp_path / 'run'}", option)
    assert not (tmp_path / "run").exists()


def test_an_existing_output_is_not_touched(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(PruningError, match="exists"):
        train(*options, f"--output={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_resume_refuses_another_model(
    options: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    text = (undisturbed / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(
        re.sub("model_fingerprint: .*", "model_fingerprint: abc", text)
    )
    with pytest.raises(PruningError, match="another model"):
        train(f"--resume={tmp_path}")


def test_resume_refuses_further_settings(undisturbed: Path) -> None:
    with pytest.raises(PruningError, match="--prune-rate has no effect"):
        train(f"--resume={undisturbed}", "--prune-rate=0.2")


def test_a_corrupted_checkpoint_is_named(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Reinforce, "learn", lambda *arguments: (_ for _ in ()).throw(Crash))
        train(*options, f"--output={run}")
    checkpoint = run / "checkpoint" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    with pytest.raises(PruningError, match=r"checkpoint.* is damaged"):
        train(f"--resume={run}")


@pytest.mark.parametrize("granularity", ["heads", "channels", "blocks", "layers"])
@pytest.mark.parametrize("init", ["auto", "random-progressive"])
def test_every_granularity_runs(
    granularity: str, init: str, options: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    rate = "--prune-rate=0.34"  # one layer of three; the others round down too
    assert (
        train(*options, f"--output={run}", f"--granularity={granularity}", f"--init={init}", rate)
        == 0
    )
    found = results(run)
    assert 0 < found["prune_rate"]["achieved"]
    assert found["perplexity"]["masked"]


def test_help_explains_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train("--help")
    out = " ".join(capsys.readouterr().out.split())
    options = re.findall(r"--[a-z-]+", out)
    assert {"--prune-rate", "--total-timesteps", "--learning-rate", "--resume"} <= set(options)
    assert out.count("(default: ") >= len(set(options)) - 3  # --help, --no-quiet, one in the text
