"""scripts/train_agent.py under torchrun: two processes share the masks."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from helpers.command import SCRIPT, assert_same_run, logged, results, train, wait_for
from helpers.forked import TORCHRUN, Forked, complaints, process_of
from pgprune.errors import PruningError
from pgprune.runs.progress import read_progress
from pgprune.runs.run import Run
from pgprune.utils.command_line import run_command
from pgprune.utils.devices import choose_device

LAUNCH = [*TORCHRUN, "--nproc-per-node=2", str(SCRIPT)]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
LONG = "--total-timesteps=4000"
SLICED = "--executor=sliced"  # evaluates one mask at a time, whoever does it


def launch(*options: str) -> Forked:
    """Starts the command as two processes."""
    return Forked([*LAUNCH, *options], caught=True)


def finished(*options: str) -> str:
    """What two processes print that do well."""
    process = launch(*options)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def finished_anew(*options: str) -> str:
    """The same of torchrun as a user starts it, whose three processes import everything."""
    done = subprocess.run([*LAUNCH, *options], env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def alone(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process whose executor takes one mask after another."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    assert train(*options, f"--output={run}", SLICED) == 0
    return run


@pytest.mark.parametrize("two", [finished, pytest.param(finished_anew, marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_learns_bit_for_bit(two, options, alone, tmp_path):
    run = tmp_path / "run"
    out = two(*options, f"--output={run}", SLICED)
    assert_same_run(alone, run)
    assert out.count("learned mask") == 1, "the main process alone prints"
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "and alone writes"


@pytest.mark.slow
def test_masks_evaluated_as_one_batch_have_the_same_losses_but_for_rounding(
    options, undisturbed, tmp_path
):
    run = tmp_path / "run"
    finished(*options, f"--output={run}", "--executor=masked")
    one, two = (read_progress(path / "progress.csv") for path in (undisturbed, run))
    assert two["rollout/loss"][0] == pytest.approx(one["rollout/loss"][0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "reward",
    [
        ["--reward=repaired", "--repair=bias"],
        ["--reward=repaired", "--repair=least-squares"],
        ["--loss=kl"],
    ],
    ids=" ".join,
)
def test_replicas_judge_masks_as_the_rewards_do(reward, options, tmp_path):
    rewarded = [*options, *reward, "--agent=auto", "--population=4", SLICED]
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(*rewarded, f"--output={one}") == 0
    finished(*rewarded, f"--output={two}")
    assert_same_run(one, two)


@pytest.mark.parametrize(
    ("rank", "says"),
    [
        (1, "rank 1 died; .* --resume"),
        pytest.param(0, "the main process, rank 0, died; resume", marks=pytest.mark.slow),
    ],
)
def test_kill_minus_9_of_one_process_ends_the_run_which_can_go_on(
    rank, says, options, alone, tmp_path
):
    run = tmp_path / "run"
    process = launch(*options, f"--output={run}", SLICED)
    wait_for(lambda: logged(run) > 20, process)
    os.kill(process_of(rank, process), signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 1
    (complaint,) = complaints(err)
    assert re.search(says, complaint)
    assert not (run / "results.json").exists()
    assert train(f"--resume={run}") == 0
    assert_same_run(alone, run)


def test_ctrl_c_saves_and_evaluates_what_was_learned(options, tmp_path):
    run = tmp_path / "run"
    process = launch(*options, f"--output={run}", SLICED, LONG)
    wait_for(lambda: logged(run) > 20, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert complaints(err) == []
    assert f"--resume {run}" in out
    assert not results(run)["completed"]
    assert not Run.open(run).finished


@pytest.mark.slow
def test_the_launcher_that_is_told_to_end_ends_the_run(options, tmp_path):
    run = tmp_path / "run"
    process = launch(*options, f"--output={run}", SLICED, LONG)
    wait_for(lambda: logged(run) > 20, process)
    process.send_signal(signal.SIGTERM)
    (complaint,) = complaints(process.communicate()[1])
    assert "the launcher ended the run" in complaint
    assert f"--resume {run}" in complaint
    assert Run.open(run).has_checkpoint


def test_more_processes_than_masks_are_refused_before_any_long_work(options, tmp_path):
    process = launch(
        *options, f"--output={tmp_path / 'run'}", "--score=paper", "--masks-per-step=1"
    )
    out, err = process.communicate()
    assert process.returncode == 1
    assert out == ""
    (complaint,) = complaints(err)
    assert "2 replicas cannot share the 1 masks of a step; start at most 1, or let" in complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ("--device=cuda:0", "device cuda:0 would hold all 2 replicas"),
        ("--device-map=auto", "start one on each host"),
    ],
)
def test_replicas_get_a_device_each(mistake, says, options, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(PruningError, match=says):
        train(*options, mistake)


def test_each_process_of_a_host_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        found.append([choose_device(name) for name in ("auto", "cuda", "cpu")])
    cpu = torch.device("cpu")
    assert found[0] == [torch.device("cuda"), torch.device("cuda"), cpu]
    assert found[1] == [torch.device("cuda:1"), torch.device("cuda:1"), cpu]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(PruningError, match="no device 'cuda:2'.* start fewer processes"):
        choose_device("auto")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_commands_that_do_not_learn_are_for_one_process(rank, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: pytest.fail("the command was run"))
    assert ended.value.code == (0 if rank == "1" else 2), "the others do not end the main process"
    says = "error: this command is for one process, not 2; start it without torchrun\n"
    assert capsys.readouterr().err == ("" if rank == "1" else says)
