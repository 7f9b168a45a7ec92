"""scripts/train_agent.py with Ray: actors share the masks, and one that is killed is replaced."""

import logging
import os
import signal
import sys

import pytest

from helpers.command import assert_same_run, train
from pgprune.agents.training.ray_team import Actors, load_ray
from pgprune.errors import PruningError

SLICED = "--executor=sliced"


@pytest.mark.slow
def test_an_actor_that_is_killed_is_replaced_and_its_masks_are_evaluated_again(
    options, tmp_path, monkeypatch, caplog
):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    evaluate, calls = Actors.losses, []

    def kill_one(self: Actors, *arguments: object) -> object:
        calls.append(self)
        if len(calls) == 20:
            asked = self._actors[0].__ray_call__.remote(lambda replica: os.getpid())
            os.kill(ray.get(asked), signal.SIGKILL)
        return evaluate(self, *arguments)

    rewarded = [*options, SLICED, "--repair=least-squares", "--reward=repaired"]
    alone, run = tmp_path / "alone", tmp_path / "run"
    assert train(*rewarded, f"--output={alone}") == 0
    monkeypatch.setattr(Actors, "losses", kill_one)
    with caplog.at_level(logging.WARNING):
        assert train(*rewarded, f"--output={run}", "--ray-actors=2") == 0
    assert len(calls) == 64
    assert [
        r.getMessage() for r in caplog.records if r.name == "pgprune.agents.training.ray_team"
    ] == ["actor 0 was lost; a new one takes its place"]
    assert_same_run(alone, run)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PruningError, match=r"pip install 'pgprune\[ray\]'"):
        load_ray()


@pytest.mark.parametrize(
    ("mistakes", "says"),
    [
        (["--ray-actors=3"], "3 replicas cannot share the 2 masks of a step"),
        (["--ray-actors=0"], "ray-actors.*at least 1"),
        (["--ray-actors=2", "--device-map=auto"], "device_map auto .* has to hold 2"),
        (["--ray-actors=2", "--device=cuda:1"], "device cuda:1 would hold all 2 replicas"),
    ],
)
def test_mistakes_are_refused_before_any_long_work(mistakes, says, options, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PruningError, match=says):
        train(*options, *mistakes)


def test_ray_and_torchrun_are_not_for_the_same_run(options, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PruningError, match="start it without torchrun, or leave --ray-actors out"):
        train(*options, "--ray-actors=2")
