"""The searches that agents are compared with: random-search, cma-es and evolution."""

import sys
from typing import Any

import pytest
import torch

from helpers.layered import UNITS, importance, layered, left_to_gain
from helpers.tiny import AdditiveLM, toy_problem, toy_units
from pgprune import PruningError
from pgprune.agents.base import Agent
from pgprune.agents.cma_es import CMAES, CMAESConfig
from pgprune.agents.evolution import Evolution, EvolutionConfig
from pgprune.agents.random_search import RandomSearch, RandomSearchConfig
from pgprune.budget.budget import Budget
from pgprune.envs import LLMPruningEnv, LLMPruningVectorEnv
from pgprune.metrics import Importance

pytest.importorskip("cma")

CONFIGS: dict[type[Agent], Any] = {
    RandomSearch: RandomSearchConfig,
    CMAES: CMAESConfig,
    Evolution: EvolutionConfig,
}
STEPS = {RandomSearch: 60, CMAES: 60, Evolution: 100}
LEFT = {RandomSearch: 0.5, CMAES: 0.05, Evolution: 0.05}
"""What each leaves to gain at most."""


@pytest.fixture(params=CONFIGS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[Agent]:
    return request.param


def agent_for(
    kind: type[Agent], lm: AdditiveLM, seed: int = 0, batch: int = 2, **options: Any
) -> Any:
    config = CONFIGS[kind](**options.pop("config", {}))
    env = LLMPruningVectorEnv(config.masks, problem=toy_problem(lm, batch=batch))
    return kind(env, config, importance(lm), seed, **options)


def learned(agent: Any, steps: int) -> Any:
    return agent.learn(steps * agent.step_tokens / 1024)


def test_it_finds_how_layers_compare(kind):
    lm = layered()
    agent = agent_for(kind, lm)
    start = agent.mask()
    learned(agent, STEPS[kind])
    assert left_to_gain(lm, agent.mask(), start, agent.budget) < LEFT[kind]


def test_every_mask_is_of_exactly_the_budget(kind):
    agent = learned(agent_for(kind, layered()), 5)
    for mask in (agent.mask(), agent.draw(), agent.predict(deterministic=False)[0]):
        assert agent.budget.excess(torch.as_tensor(mask)[None]) == 0
        assert int(mask.sum()) == UNITS.n // 2
    assert torch.equal(agent.probabilities, agent.mask().double())


def test_draws_differ_and_do_not_disturb_learning(kind):
    agent, other = (learned(agent_for(kind, layered()), 3) for _ in range(2))
    assert len({tuple(other.draw().tolist()) for _ in range(8)}) > 1
    assert torch.equal(learned(agent, 6).mask(), learned(other, 6).mask())


def test_it_is_deterministic_in_its_seed(kind):
    torch.manual_seed(1)  # of no consequence
    first, again, other = (learned(agent_for(kind, layered(), seed), 6) for seed in (3, 3, 4))
    assert torch.equal(first.mask(), again.mask())
    assert not torch.equal(first.mask(), other.mask())


def test_losses_that_are_not_numbers_are_the_worst(kind):
    lm = layered()
    agent = agent_for(kind, lm)
    losses, start = lm.losses, agent.mask()

    def broken(masks: torch.Tensor, *arguments: Any) -> torch.Tensor:
        """The best mask of each call has none."""
        found = losses(masks, *arguments)
        found[found.mean(1).argmin()] = torch.nan
        return found

    lm.losses = broken  # type: ignore[method-assign]
    learned(agent, 20)
    assert agent.skipped > 0
    assert left_to_gain(lm, agent.mask(), start, agent.budget) < 1
    lm.losses = lambda masks, *_: torch.full((len(masks), 2), torch.nan)  # type: ignore
    with pytest.raises(PruningError, match="nothing to learn from"):
        learned(agent, 100)


def test_a_saved_agent_goes_on_as_if_nothing_had_happened(kind, tmp_path):
    path = tmp_path / "agent.safetensors"
    undisturbed = learned(agent_for(kind, layered(), seed=3), 24)
    killed = learned(agent_for(kind, layered(), seed=3), 13)
    killed.save(path)
    resumed = agent_for(kind, layered(), seed=9).load(path)
    assert torch.equal(resumed.mask(), killed.mask())
    learned(resumed, 24)
    tensors, values = undisturbed.state()
    again, values_again = resumed.state()
    assert values == values_again
    assert tensors.keys() == again.keys()
    for name in tensors:
        assert torch.equal(tensors[name], again[name]), name


def test_a_state_over_other_units_is_refused(kind, tmp_path):
    few = toy_units(layers=1)
    worth = torch.ones(few.n).double()
    problem = toy_problem(AdditiveLM(few, worth), 0.5)
    env = LLMPruningVectorEnv(CONFIGS[kind]().masks, problem=problem)
    nothing = Importance(worth)
    kind(env, None, nothing).save(tmp_path / "other")
    with pytest.raises(PruningError, match="chooses among 8 units, this environment has 96"):
        agent_for(kind, layered()).load(tmp_path / "other")


def test_environments_that_do_not_fit_are_refused(kind):
    problem = toy_problem(layered())
    with pytest.raises(PruningError, match="masks a step but the environment has num_envs 5"):
        kind(LLMPruningVectorEnv(5, problem=problem), CONFIGS[kind]())
    with pytest.raises(PruningError, match="needs the vector environment, not LLMPruningEnv"):
        kind(LLMPruningEnv(problem=problem))


def test_every_token_is_counted(kind, problem):
    config, n = CONFIGS[kind](), problem.units.n
    env = LLMPruningVectorEnv(config.masks, problem=problem)
    ranked = Importance(torch.arange(n).double())
    agent = kind(env, config, ranked)
    before = problem.lm.meter.tokens
    learned(agent, 3)
    assert problem.lm.meter.tokens - before == 3 * agent.step_tokens
    assert agent.timesteps == 3 * agent.step_tokens // 1024


def test_cma_es_also_searches_among_scores_of_units():
    lm = layered()
    agent = agent_for(CMAES, lm, action="score", config={"cma_population": 20})
    start = agent.mask()
    assert agent.mean.shape == (UNITS.n,)
    assert left_to_gain(lm, learned(agent, 100).mask(), start, agent.budget) < 0.2
    assert agent.draw().shape == (UNITS.n,)


def test_a_score_for_each_of_too_many_units_is_refused():
    units = toy_units(layers=2, channels=6000)
    problem = toy_problem(AdditiveLM(units, torch.ones(units.n)))
    with pytest.raises(PruningError, match="12004 dimensions here, more than the 10000"):
        CMAES(LLMPruningVectorEnv(10, problem=problem), action="score")


def test_another_population_or_arithmetic_does_not_go_on(tmp_path):
    learned(agent_for(CMAES, layered()), 3).save(tmp_path / "agent")
    other = agent_for(CMAES, layered(), config={"cma_population": 12})
    with pytest.raises(PruningError, match="has a population of 10 in 8 dimensions"):
        other.load(tmp_path / "agent")
    agent = agent_for(CMAES, layered())
    tensors, values = learned(agent_for(CMAES, layered()), 3).state()
    with pytest.raises(PruningError, match="saved mean"):
        agent.restore(tensors | {"mean": tensors["mean"] + 1e-9}, values)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(PruningError, match=r"pip install 'pgprune\[search\]'"):
        agent_for(CMAES, layered())


def test_stages_halve_the_masks_and_double_the_tokens():
    agent = agent_for(Evolution, layered(), batch=8)
    assert agent.stages() == [(16, 2), (8, 4), (4, 8)]
    sequences = 17 * 2 + 9 * 2 + 5 * 4  # the parent is judged on all of them
    assert agent.step_tokens == sequences * 8
    assert agent_for(Evolution, layered(), batch=1).stages() == [(16, 1)]
    one = agent_for(Evolution, layered(), batch=8, config={"stages": 1})
    assert one.stages() == [(16, 8)]


@pytest.mark.parametrize("kind_of_budget", ["per-kind", "units", "parameters"])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_mutations_stay_in_every_budget(kind_of_budget, scope, round_to):
    agent = agent_for(Evolution, layered())
    budget = Budget(UNITS, 0.5, kind_of_budget, scope, round_to)
    agent.env.budget = budget
    agent = Evolution(agent.env, agent.config, importance(layered()))
    seen = {tuple(agent.draw().tolist()) for _ in range(40)}
    assert len(seen) > 10
    masks = torch.tensor([*seen])
    assert bool((budget.excess(masks) == 0).all())
    if kind_of_budget == "per-kind":
        assert set(masks.sum(1).tolist()) == {UNITS.n // 2}
    if round_to > 1:
        kept = (budget.units.kept_shares(masks) * 20)[:, 1::2]  # of the 20 channels of a layer
        assert bool((kept % round_to == 0).all())


def test_a_switch_is_within_a_pool_and_swaps_equally_many():
    agent = agent_for(Evolution, layered(), config={"reach": 0.5})
    kept, generator = agent.parent.bool(), torch.Generator().manual_seed(0)
    moved = set()
    for _ in range(50):
        switched = agent.switched(kept, generator)
        out, into = kept & ~switched, ~kept & switched
        assert 1 <= int(out.sum()) == int(into.sum()) <= 11
        assert len(UNITS.group[out].unique()) == len(UNITS.group[into].unique()) == 1
        assert torch.equal(UNITS.kind[out].unique(), UNITS.kind[into].unique())
        moved.add(int(out.sum()))
    assert len(moved) > 3
