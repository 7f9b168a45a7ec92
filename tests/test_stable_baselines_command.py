"""Agents of Stable-Baselines3 as a user runs them."""

from pathlib import Path

import pytest

from command import Crash, results, train
from pgprune import PruningError
from pgprune.agents.results import next_commands
from pgprune.agents.stable_baselines import Sb3Agent
from pgprune.run import Run


@pytest.mark.parametrize("agent", ["ppo", "a2c", "trpo", "sac", "td3"])
def test_a_run_learns_and_writes_everything(agent: str, options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    few = [*options, f"--agent={agent}", f"--{agent}-masks=4", "--total-timesteps=1"]
    assert train(*few, f"--output={run}") == 0
    assert results(run)["agent"] == agent
    assert results(run)["prune_rate"]["achieved"] == pytest.approx(0.5, abs=0.1)
    assert not list(run.rglob("*.zip")), "nothing of the library's own format"


def test_a_crashed_run_says_why_it_cannot_go_on(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def crash(self: Sb3Agent, *arguments: int) -> dict[str, float]:
        raise Crash

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Sb3Agent, "_learn_step", crash)
        train(*options, "--agent=ppo", f"--output={run}")
    with pytest.raises(PruningError, match="agent ppo cannot go on .*; start a new run"):
        train(f"--resume={run}")
    stopped = {"completed": False, "model": "builtin", "agent": "ppo"}
    assert next_commands(stopped, Run.open(run)) == [], "nothing that it would refuse"
    assert "--resume" in next_commands(stopped | {"agent": "auto"}, Run.open(run))[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--agent=sac", "--action=mask"], "action mask does not fit agent sac"),
        (["--agent=ppo", "--init=random-progressive"], "agent ppo does not have"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_exists(
    more: list[str], message: str, options: list[str], tmp_path: Path
) -> None:
    with pytest.raises(PruningError, match=message):
        train(*options, *more, f"--output={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
