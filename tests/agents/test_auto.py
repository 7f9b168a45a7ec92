"""The recommended agent: offsets for each layer and kind, learned by a natural policy gradient."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.command import results, train
from helpers.layered import UNITS, importance, layered, left_to_gain
from helpers.tiny import AdditiveLM, toy_problem, toy_units
from pgprune import PruningError
from pgprune.agents.auto import Auto, AutoConfig, advantages_of_ranks, natural_step
from pgprune.agents.training.settings import Settings
from pgprune.budget.budget import Budget
from pgprune.envs import LLMPruningEnv, LLMPruningVectorEnv
from pgprune.metrics import Importance
from pgprune.runs.run import Run


def agent_for(lm: AdditiveLM, population: int = 10, seed: int = 0, **options: Any) -> Auto:
    env = LLMPruningVectorEnv(population, problem=toy_problem(lm))
    config = AutoConfig(population=population, **options)
    return Auto(env, config, importance(lm), seed)


def learned(agent: Auto, steps: int) -> Auto:
    return agent.learn(steps * agent.step_tokens // 1024 or 1)


def test_it_finds_how_layers_compare():
    lm = layered()
    agent = agent_for(lm)
    start = agent.mask()
    assert left_to_gain(lm, learned(agent, 60).mask(), start, agent.budget) < 0.1


def test_every_mask_is_of_exactly_the_budget():
    agent = learned(agent_for(layered()), 5)
    for mask in (agent.mask(), agent.draw(), agent.predict(deterministic=False)[0]):
        assert agent.budget.excess(torch.as_tensor(mask)[None]) == 0
        assert int(mask.sum()) == UNITS.n // 2


def test_masks_of_a_step_are_antithetic_pairs(monkeypatch):
    """What one mask of a pair keeps more of a layer than the start, the other keeps less."""
    units = toy_units(layers=4, kv_heads=4, channels=2000)
    even = torch.cat([torch.linspace(0, 1, group.stop - group.start) for group in units.groups])
    scores = Importance(even.double(), local=False)
    env = LLMPruningVectorEnv(6, problem=toy_problem(layered(units)))
    agent, seen, step = Auto(env, AutoConfig(population=6), scores), [], env.step
    monkeypatch.setattr(env, "step", lambda masks: seen.append(masks) or step(masks))
    more = units.kept_shares(agent.mask()[None])[:, 1::2]  # of channels, (1, layers)
    learned(agent, 1)
    more = units.kept_shares(seen[0])[:, 1::2] - more  # (6, layers)
    torch.testing.assert_close(more[:3], -more[3:], rtol=0, atol=0.01)
    assert float(more.std()) == pytest.approx(0.3 * float(even.std()), rel=0.3)


def test_the_step_is_the_one_of_separable_natural_evolution_strategies():
    """Wierstra et al. 2014, Algorithm 6 and Table 1, spelt out for two masks."""
    noise = torch.randn(2, 8, dtype=torch.float64)
    mean, deviation = torch.zeros(8).double(), torch.full((8,), 0.3).double()
    better, worse = 1 - 1 / 2, 0 - 1 / 2  # the utility of the worse of two is 0
    rate = (3 + torch.tensor(8.0).log()) / (5 * torch.tensor(8.0).sqrt())
    moved = mean + deviation * (better * noise[0] + worse * noise[1])
    grown = better * (noise[0] ** 2 - 1) + worse * (noise[1] ** 2 - 1)
    found = natural_step(mean, deviation, noise)
    torch.testing.assert_close(found[0], moved)
    torch.testing.assert_close(found[1], deviation * (rate.double() / 2 * grown).exp())


@pytest.mark.parametrize("count", [2, 4, 10, 11])
def test_advantages_fall_with_the_rank_and_cancel(count):
    advantages = advantages_of_ranks(count)
    assert advantages.sum() == pytest.approx(0)
    assert bool((advantages.diff() <= 0).all())
    assert advantages[0] > 0 > advantages[-1]


def test_scores_are_standardised_where_they_compare():
    scores = torch.arange(UNITS.n, dtype=torch.float64) ** 2
    for local, groups in ((True, UNITS.group), (False, UNITS.kind)):
        found = Importance(scores, local).standardised(UNITS)
        for index in groups.unique():
            part = found[groups == index]
            assert part.mean() == pytest.approx(0, abs=1e-12)
            assert part.std(correction=0) == pytest.approx(1)
            assert bool((part.diff() > 0).all())


def test_single_units_are_learned_where_the_metric_is_wrong_about_them():
    generator = torch.Generator().manual_seed(1)
    lm = AdditiveLM(UNITS, torch.rand(UNITS.n, generator=generator).double())
    env = LLMPruningVectorEnv(10, problem=toy_problem(lm))
    scores = torch.rand(UNITS.n, generator=generator).double()
    wrong = Importance(scores)
    left = []
    for allocation in (1_000_000, 1):
        agent = Auto(env, AutoConfig(allocation=allocation), wrong)
        start = agent.mask()
        left.append(left_to_gain(lm, learned(agent, 200).mask(), start, agent.budget))
    assert left[0] > 0.5 > left[1]


@pytest.mark.parametrize(
    ("allocation", "timesteps", "expected"),
    [(None, 999, 999), (None, 1000, 300), (None, 3000, 300), (500, 600, 500), (500, 100, 500)],
)
def test_when_single_units_are_learned(allocation, timesteps, expected):
    assert AutoConfig(allocation=allocation).evaluations_of_layers(timesteps) == expected


def test_single_units_are_learned_after_the_layers():
    agent = agent_for(layered(), allocation=1)  # which is 1024 / (10 x 16) = 6.4 steps
    began = []
    agent.learn(2, lambda agent, _: began.append(len(agent.keep) > 0))
    assert began == [False] * 7 + [True] * 6


@pytest.mark.parametrize("kind", ["per-kind", "units", "parameters"])
def test_single_units_startstart_of_units(kind):
    lm = layered()
    problem = replace(toy_problem(lm), budget=Budget(lm.units, 0.5, kind))
    agent = learned(Auto(LLMPruningVectorEnv(10, problem=problem), None, importance(lm)), 20)
    answer, keep = agent.mask(), agent.start_of_units()
    assert torch.equal(agent.budget.round(keep), answer)
    assert agent.budget.excess(keep[None]) <= 1e-12
    assert keep[answer == 1].mean() > 0.6
    scores = agent.scores + agent.average[UNITS.group]
    for pool in agent.budget.pools:
        ordered = keep[pool.members][scores[pool.members].argsort()]
        assert bool((ordered.diff() >= 0).all())


def test_units_that_are_groups_of_their_own_need_no_second_stage():
    agent = agent_for(layered(toy_units(layers=4, kv_heads=1, channels=1)), allocation=1)
    assert len(agent.learn(2).keep) == 0


def test_losses_that_are_not_numbers_are_the_worst_of_a_step():
    lm = layered()
    agent = agent_for(lm)
    losses = lm.losses

    def broken(masks: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
        found = losses(masks, *arguments)
        found[found.mean(1).argmax()] = torch.nan
        return found

    lm.losses = broken  # type: ignore[method-assign]
    assert learned(agent, 5).skipped == agent.steps
    assert bool(agent.mean.isfinite().all())
    lm.losses = lambda masks, *_: torch.full((len(masks), 2), torch.nan)  # type: ignore
    with pytest.raises(PruningError, match="nothing to learn from"):
        agent.learn(10_000)


def test_what_was_learned_is_where_another_rate_starts():
    lm, before = layered(), learned(agent_for(layered()), 20)
    agent = agent_for(lm)
    cold = agent.mask()
    agent.start_from(before.state()[0], before.mask())
    assert torch.equal(agent.mask(), before.mask())  # of the same rate here
    assert left_to_gain(lm, learned(agent, 20).mask(), cold, agent.budget) < 0.1


@pytest.mark.parametrize("allocation", [1000, 1, 2])
def test_a_saved_agent_goes_on_as_if_nothing_had_happened(allocation, tmp_path):
    undisturbed = learned(agent_for(layered(), seed=3, allocation=allocation), 12)
    killed = agent_for(layered(), seed=3, allocation=allocation)
    total = 12 * killed.step_tokens // 1024 or 1
    killed.learn(total, lambda agent, _: agent.steps < 7)
    killed.save(tmp_path / "agent.safetensors")
    resumed = agent_for(layered(), seed=9, allocation=allocation)
    resumed.load(tmp_path / "agent.safetensors")
    resumed.learn(total)
    assert torch.equal(resumed.mask(), undisturbed.mask())
    assert torch.equal(resumed.mean, undisturbed.mean)
    assert torch.equal(resumed.keep, undisturbed.keep)


def test_what_cannot_be_is_refused():
    problem = toy_problem(layered())
    with pytest.raises(PruningError, match="population 5 does not consist of pairs"):
        AutoConfig(population=5)
    with pytest.raises(PruningError, match="evaluates 4 masks a step but .* num_envs 2"):
        Auto(LLMPruningVectorEnv(2, problem=problem), AutoConfig(population=4))
    with pytest.raises(PruningError, match="needs the vector environment, not LLMPruningEnv"):
        Auto(LLMPruningEnv(problem=problem))


@pytest.mark.parametrize("granularity", ["channels", "blocks", "layers"])
def test_any_granularity_has_a_run(granularity, options, tmp_path):
    run = tmp_path / "run"
    few = [*options, "--agent=auto", f"--granularity={granularity}", "--total-timesteps=1"]
    assert train(*few, f"--output={run}") == 0
    assert results(run)["agent"] == "auto"
    assert results(run)["learning_rate"] is None
    expected = "stream-error" if granularity == "channels" else "layerwise-ppl"
    assert Settings.from_run(Run.open(run)).metric == expected


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--init=random-progressive", "agent auto does not have; choose another init"),
        ("--scope=uniform", "which scope uniform fixes; choose agent reinforce"),
    ],
)
def test_what_it_cannot_do_is_refused_before_a_run_exists(option, message, options, tmp_path):
    with pytest.raises(PruningError, match=message):
        train(*options, "--agent=auto", option, f"--output={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
