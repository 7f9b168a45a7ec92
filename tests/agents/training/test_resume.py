"""scripts/train_agent.py as a user runs it: crashed, killed, interrupted and resumed."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from helpers.command import Crash, assert_same_run, logged, results, start, train, wait_for
from pgprune.agents.registry import AGENTS
from pgprune.losses import windows as window_losses
from pgprune.runs.results import with_repair
from pgprune.runs.run import Run

REPAIRED = ["--reward=repaired", "--reward-refit=5"]  # which checkpoint_every does not divide
CASES = [
    *((name, []) for name, entry in AGENTS.items() if entry.no_resume is None),
    ("auto", ["--allocation=1"]),  # single units from the fifth step on
    ("auto", REPAIRED),
    ("evolution", REPAIRED),
    ("auto", ["--loss=kl", "--reward=plain"]),
    ("reinforce", ["--sampling=antithetic"]),
    ("reinforce", ["--control=dense"]),
    ("reinforce", [*REPAIRED, "--repair=bias"]),
    ("reinforce", [*REPAIRED, "--repair=least-squares"]),
    ("reinforce", [*REPAIRED, "--repair=least-squares", "--loss=kl"]),
]


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Trains with options until an agent's step, in which the process ends."""

    def crash_in(moment: int, agent: str, *options: str) -> None:
        step = AGENTS[agent].agent._learn_step

        def crash(self: Any, *arguments: int) -> dict[str, float]:
            if self.steps + 1 == moment:
                raise Crash
            return step(self, *arguments)

        with monkeypatch.context() as patched, pytest.raises(Crash):
            patched.setattr(AGENTS[agent].agent, "_learn_step", crash)
            train(*options)

    return crash_in


@pytest.mark.parametrize(("agent", "more"), CASES, ids=lambda value: "".join(value))
def test_a_killed_run_is_resumed_bit_for_bit(agent, more, options, crashing, tmp_path):
    if AGENTS[agent].package is not None:
        pytest.importorskip(AGENTS[agent].package[0])
    few = [*options, f"--agent={agent}", "--checkpoint-every=3", *more]
    few += ["--reward=plain"] * (agent == "auto" and not more)  # levels: test_level_search.py
    few += ["--total-timesteps=1"] * (agent == "reinforce")  # with fewer masks a step than others
    assert train(*few, f"--output={tmp_path / 'undisturbed'}") == 0
    crashing(9, agent, *few, f"--output={tmp_path / 'killed'}")
    assert train(f"--resume={tmp_path / 'killed'}") == 0
    assert_same_run(tmp_path / "undisturbed", tmp_path / "killed")


def test_a_resumed_run_reads_the_windows_that_it_had_decided_on(
    options, crashing, tmp_path, monkeypatch
):
    monkeypatch.setattr(window_losses, "STANDARD_ERROR", 0.1)
    unsure = [word for word in options if not word.startswith("--evaluation-windows")]
    assert train(*unsure, f"--output={tmp_path / 'undisturbed'}") == 0
    crashing(9, "reinforce", *unsure, f"--output={tmp_path / 'killed'}")
    assert train(f"--resume={tmp_path / 'killed'}") == 0
    assert_same_run(tmp_path / "undisturbed", tmp_path / "killed")
    assert results(tmp_path / "killed")["evaluation"]["windows"]["text"] < 100  # of 252


@pytest.mark.parametrize("moment", [1, 7, 8, 36, 64])
def test_resume_after_a_crash_in_any_step(moment, options, undisturbed, crashing, tmp_path):
    crashing(moment, "reinforce", *options, f"--output={tmp_path / 'run'}")
    assert train(f"--resume={tmp_path / 'run'}") == 0
    assert_same_run(undisturbed, tmp_path / "run")


def test_kill_minus_9_again_and_again(options, undisturbed, tmp_path):
    run = tmp_path / "run"
    moments = [
        lambda: run.exists(),  # before the first checkpoint
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
    options, undisturbed, tmp_path, capsys, monkeypatch
):
    def crash(*arguments: Any) -> None:
        raise Crash

    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Run, "save_checkpoint", crash)
        train(*options, f"--output={run}")
    assert train(f"--resume={run}") == 0
    assert "starts over" in capsys.readouterr().out
    assert_same_run(undisturbed, run)


def test_resume_of_a_finished_run_says_so(undisturbed, capsys):
    assert train(f"--resume={undisturbed}") == 0
    assert "finished" in capsys.readouterr().out


def test_ctrl_c_saves_and_evaluates_what_was_learned(options, undisturbed, tmp_path):
    run = tmp_path / "run"
    long = [*options, f"--output={run}", "--total-timesteps=4000", "--export=hf"]
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
    assert not (run / "hf").exists(), "exported when it has done all its steps"


def test_ctrl_c_in_the_last_evaluation_lets_it_end(options, undisturbed, tmp_path, monkeypatch):
    def press(*arguments):
        signal.raise_signal(signal.SIGINT)
        return with_repair(*arguments)

    monkeypatch.setattr("pgprune.agents.training.train.with_repair", press)
    assert train(*options, f"--output={tmp_path / 'run'}") == 0
    assert_same_run(undisturbed, tmp_path / "run")
