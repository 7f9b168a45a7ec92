"""scripts/train_agent.py with the searches: options and mistakes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.command import results, train
from pgprune import PruningError
from pgprune.agents.registry import AGENTS
from pgprune.agents.training.config import AgentConfig
from pgprune.agents.training.settings import Settings
from pgprune.repair.config import RepairConfig
from pgprune.runs.run import Run

pytest.importorskip("cma")

FEW = {
    "random-search": ["--candidates=4"],
    "cma-es": ["--cma-population=4"],
    "evolution": ["--offspring=4"],
}


@pytest.fixture
def run_of(options: list[str], tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, output: str, *more: str) -> Path:
        few = [*options, f"--agent={name}", *FEW[name], "--total-timesteps=1", *more]
        assert train(*few, f"--output={tmp_path / output}") == 0
        return tmp_path / output

    return run


@pytest.mark.parametrize(
    ("agent", "reward", "expected"),
    [
        ("cma-es", "plain", "stream-error"),
        ("evolution", "repaired", "stream-error-refit"),
        ("reinforce", "repaired", "wanda-sp"),
    ],
)
def test_the_metric_suits_the_agent_and_the_reward(agent, reward, expected):
    config = AgentConfig(agent=agent, reward=reward)
    assert Settings(agent=config, repair=RepairConfig(repair="least-squares")).metric == expected


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("granularity", ["blocks", "layers"])
def test_coarse_units_are_searched_too(name, granularity, run_of):
    run = run_of(name, "run", f"--granularity={granularity}", "--prune-rate=0.34")
    assert results(run)["perplexity"]["masked"]


def test_cma_es_acts_as_it_is_told(run_of):
    run = run_of("cma-es", "run", "--action=score")
    assert Settings.from_run(Run.open(run)).action == "score"
    assert Settings().action is None


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--agent=auto", "--action=density"], "density does not fit agent auto"),
        (["--agent=cma-es", "--action=mask"], "mask does not fit agent cma-es.* density or score"),
        (["--agent=cma-es", "--cma-population=3"], "cma-population.* at least 4"),
        (["--agent=evolution", "--reach=2"], "reach.* at most 1"),
        (["--agent=random-search", "--candidates=1"], "candidates.* at least 2"),
        (["--agent=evolution", "--init=random-progressive"], "agent evolution does not have"),
        (["--agent=cma-es", "--scope=local"], "agent cma-es learns how much each layer keeps"),
        (["--agent=random-search", "--scope=uniform"], "which scope uniform fixes"),
        (["--agent=annealing"], "one of reinforce, auto, random-search, cma-es, evolution"),
    ],
)
def test_mistakes_are_refused_before_a_run_exists(more, says, options, tmp_path):
    with pytest.raises(PruningError, match=says):
        train(*options, *more, f"--output={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_what_cannot_go_on_says_why(undisturbed, tmp_path, monkeypatch):
    forgetful = replace(AGENTS["reinforce"], no_resume="it forgets")
    monkeypatch.setitem(AGENTS, "reinforce", forgetful)
    (tmp_path / "config.yaml").write_text((undisturbed / "config.yaml").read_text())
    with pytest.raises(PruningError, match="reinforce cannot resume .* because it forgets"):
        train(f"--resume={tmp_path}")
    assert train(f"--resume={undisturbed}") == 0, "a finished run has nothing to resume"
