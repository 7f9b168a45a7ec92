"""scripts/train_agent.py with the searches: crashes, options, mistakes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.command import Crash, assert_same_run, results, train
from pgprune import PruningError
from pgprune.agents.base import Agent
from pgprune.agents.cma_es import CMAES
from pgprune.agents.evolution import Evolution
from pgprune.agents.random_search import RandomSearch
from pgprune.agents.registry import AGENTS
from pgprune.agents.training.settings import Settings
from pgprune.runs.run import Run

pytest.importorskip("cma")

FEW = {
    "random-search": ["--candidates=4"],
    "cma-es": ["--cma-population=4"],
    "evolution": ["--offspring=4"],
}
CLASSES: dict[str, type[Agent]] = {
    "random-search": RandomSearch,
    "cma-es": CMAES,
    "evolution": Evolution,
}


@pytest.fixture
def run_of(options: list[str], tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, output: str, *more: str) -> Path:
        few = [*options, f"--agent={name}", *FEW[name], "--total-timesteps=1", *more]
        assert train(*few, "--checkpoint-every=3", f"--output={tmp_path / output}") == 0
        return tmp_path / output

    return run


REPAIRED = ["--reward=repaired", "--reward-refit=2"]


@pytest.mark.parametrize(("name", "more"), [*((name, []) for name in FEW), ("evolution", REPAIRED)])
def test_a_crashed_run_goes_on(
    name: str,
    more: list[str],
    run_of: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = CLASSES[name]._learn_step

    def crash(self: Agent, *arguments: int) -> dict[str, float]:
        if self.steps + 1 == 6:
            raise Crash
        return step(self, *arguments)

    undisturbed = run_of(name, "undisturbed", *more)
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(CLASSES[name], "_learn_step", crash)
        run_of(name, "crashed", *more)
    assert train(f"--resume={tmp_path / 'crashed'}") == 0
    assert_same_run(undisturbed, tmp_path / "crashed")
    assert results(undisturbed)["agent"] == name
    metric = Settings.from_run(Run.open(undisturbed)).metric
    assert metric == ("stream-error-refit" if more else "stream-error")


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("granularity", ["blocks", "layers"])
def test_coarse_units_are_searched_too(
    name: str, granularity: str, run_of: Callable[..., Path]
) -> None:
    run = run_of(name, "run", f"--granularity={granularity}", "--prune-rate=0.34")
    assert results(run)["perplexity"]["masked"]


def test_cma_es_acts_as_it_is_told(run_of: Callable[..., Path]) -> None:
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
def test_mistakes_are_refused_before_a_run_exists(
    more: list[str], says: str, options: list[str], tmp_path: Path
) -> None:
    with pytest.raises(PruningError, match=says):
        train(*options, *more, f"--output={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_what_cannot_go_on_says_why(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful = replace(AGENTS["reinforce"], no_resume="it forgets")
    monkeypatch.setitem(AGENTS, "reinforce", forgetful)
    (tmp_path / "config.yaml").write_text((undisturbed / "config.yaml").read_text())
    with pytest.raises(PruningError, match="reinforce cannot resume .* because it forgets"):
        train(f"--resume={tmp_path}")
    assert train(f"--resume={undisturbed}") == 0, "a finished run has nothing to go on with"
