"""Agents of Stable-Baselines3 as a user runs them."""

import errno
from collections.abc import Callable

import pytest

from helpers.command import Crash, results, train
from pgprune import PruningError
from pgprune.agents.stable_baselines import Sb3Agent
from pgprune.agents.training.results import next_commands
from pgprune.runs.files import check_output
from pgprune.runs.finished import FinishedRun
from pgprune.runs.run import Run


@pytest.mark.parametrize("agent", ["ppo", "a2c", "trpo", "sac", "td3"])
def test_a_run_learns_and_writes_everything(agent, options, tmp_path):
    run = tmp_path / "run"
    few = [*options, f"--agent={agent}", f"--{agent}-masks=4", "--total-timesteps=1"]
    assert train(*few, f"--output={run}") == 0
    assert results(run)["agent"] == agent
    assert results(run)["prune_rate"]["achieved"] == pytest.approx(0.5, abs=0.1)
    assert not list(run.rglob("*.zip")), "nothing of the library's own format"


def test_a_crashed_run_says_why_it_cannot_go_on(options, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def crash(self: Sb3Agent, *arguments: int) -> dict[str, float]:
        raise Crash

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Sb3Agent, "_learn_step", crash)
        train(*options, "--agent=ppo", f"--output={run}")
    with pytest.raises(PruningError, match="agent ppo cannot resume .*; start a new run"):
        train(f"--resume={run}")
    with pytest.raises(PruningError, match="run exists; choose another --output$"):
        check_output(str(run))
    with pytest.raises(PruningError, match="has no results yet; start a new run$"):
        FinishedRun.open(run)
    stopped = {"completed": False, "model": "builtin", "agent": "ppo"}
    assert next_commands(stopped, Run.open(run)) == [], "nothing that it would refuse"
    assert "--resume" in next_commands(stopped | {"agent": "auto"}, Run.open(run))[0]


def test_a_second_ctrl_c_and_a_full_disk_advise_nothing_that_is_refused(
    options, tmp_path, monkeypatch, capsys
):
    def fails_with(error: BaseException) -> Callable[..., None]:
        def save(*_: object) -> None:
            raise error

        return save

    few = [*options, "--agent=ppo", f"--output={tmp_path / 'run'}"]
    monkeypatch.setattr("pgprune.runs.run.write_checkpoint", fails_with(KeyboardInterrupt()))
    assert train(*few) == 130
    assert "interrupted\n" in capsys.readouterr().out
    few[-1] += "-2"
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("pgprune.runs.run.write_checkpoint", fails_with(full))
    with pytest.raises(PruningError, match="no space left.*; free some space, then start a new"):
        train(*few)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--agent=sac", "--action=mask"], "action mask does not fit agent sac"),
        (["--agent=ppo", "--init=random-progressive"], "agent ppo does not have"),
        (["--agent=ppo", "--action=density", "--scope=local"], "which scope local fixes"),
        (["--agent=td3", "--scope=uniform"], "agent td3 learns how much each layer keeps"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_exists(more, message, options, tmp_path):
    with pytest.raises(PruningError, match=message):
        train(*options, *more, f"--output={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
