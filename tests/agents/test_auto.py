"""The recommended agent: offsets for each layer and kind, learned by a natural policy gradient."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.command import Crash, assert_same_run, results, train
from helpers.layered import UNITS, importance, layered, left_to_gain
from helpers.tiny import AdditiveLM, toy_problem
from pgprune import PruningError
from pgprune.agents.auto import Auto, AutoConfig, advantages_of_ranks
from pgprune.agents.training.settings import Settings
from pgprune.envs import LLMPruningEnv, LLMPruningVectorEnv
from pgprune.masking.budget import Budget
from pgprune.metrics import Importance
from pgprune.runs.run import Run


def agent_for(lm: AdditiveLM, population: int = 10, seed: int = 0, **options: Any) -> Auto:
    env = LLMPruningVectorEnv(population, problem=toy_problem(lm))
    config = AutoConfig(population=population, **options)
    return Auto(env, config, importance(lm), seed)


def learned(agent: Auto, steps: int) -> Auto:
    return agent.learn(steps * agent.step_tokens // 1024 or 1)


def test_it_finds_how_layers_compare() -> None:
    lm = layered()
    agent = agent_for(lm)
    start = agent.mask()
    assert left_to_gain(lm, learned(agent, 60).mask(), start, agent.budget) < 0.1


def test_every_mask_is_of_exactly_the_budget() -> None:
    agent = learned(agent_for(layered()), 5)
    for mask in (agent.mask(), agent.draw(), agent.predict(deterministic=False)[0]):
        assert agent.budget.excess(torch.as_tensor(mask)[None]) == 0
        assert int(mask.sum()) == UNITS.n // 2


def test_masks_of_a_step_are_antithetic_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, seen = agent_for(layered(), population=6), []
    masks = agent._masks
    monkeypatch.setattr(agent, "_masks", lambda offsets: seen.append(offsets) or masks(offsets))
    learned(agent, 1)
    offsets = next(rows for rows in seen if len(rows) == 6)
    assert torch.equal(offsets[:3], -offsets[3:])
    assert offsets.std() == pytest.approx(0.3, rel=0.3)


def test_the_step_is_the_one_of_separable_natural_evolution_strategies() -> None:
    """Wierstra et al. 2014, Algorithm 6 and Table 1, spelt out for two masks."""
    agent = agent_for(layered(), population=2)
    noise = torch.randn(2, len(UNITS.groups), dtype=torch.float64)
    mean, deviation = agent.mean.clone(), agent.deviation.clone()
    agent._follow(noise)
    better, worse = 1 - 1 / 2, 0 - 1 / 2  # the utility of the worse of two is 0
    rate = (3 + torch.tensor(8.0).log()) / (5 * torch.tensor(8.0).sqrt())
    moved = mean + deviation * (better * noise[0] + worse * noise[1])
    grown = better * (noise[0] ** 2 - 1) + worse * (noise[1] ** 2 - 1)
    torch.testing.assert_close(agent.mean, moved)
    torch.testing.assert_close(agent.deviation, deviation * (rate.double() / 2 * grown).exp())


@pytest.mark.parametrize("count", [2, 4, 10, 11])
def test_advantages_fall_with_the_rank_and_cancel(count: int) -> None:
    advantages = advantages_of_ranks(count)
    assert advantages.sum() == pytest.approx(0)
    assert bool((advantages.diff() <= 0).all())
    assert advantages[0] > 0 > advantages[-1]


def test_scores_are_standardised_where_they_compare() -> None:
    scores = torch.arange(UNITS.n, dtype=torch.float64) ** 2
    for local, groups in ((True, UNITS.group), (False, UNITS.kind)):
        found = Importance(scores, local).standardised(UNITS)
        for index in groups.unique():
            part = found[groups == index]
            assert part.mean() == pytest.approx(0, abs=1e-12)
            assert part.std(correction=0) == pytest.approx(1)
            assert bool((part.diff() > 0).all())


def test_single_units_are_learned_where_the_metric_is_wrong_about_them() -> None:
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
def test_when_single_units_are_learned(
    allocation: int | None, timesteps: int, expected: int
) -> None:
    agent = agent_for(layered(), allocation=allocation)
    steps = agent._allocation_steps(agent.steps_for(timesteps), timesteps)
    assert steps == agent.steps_for(expected)


@pytest.mark.parametrize("kind", ["per-kind", "units", "parameters"])
def test_single_units_start_around_the_answer(kind: str) -> None:
    lm = layered()
    problem = replace(toy_problem(lm), budget=Budget(lm.units, 0.5, kind))
    agent = learned(Auto(LLMPruningVectorEnv(10, problem=problem), None, importance(lm)), 20)
    answer, keep = agent.mask(), agent._around_the_answer()
    assert torch.equal(agent.budget.round(keep), answer)
    assert agent.budget.excess(keep[None]) <= 1e-12
    assert keep[answer == 1].mean() > 0.6
    scores = agent.scores + agent.average[UNITS.group]
    for pool in agent.budget.pools:
        ordered = keep[pool.members][scores[pool.members].argsort()]
        assert bool((ordered.diff() >= 0).all())


def test_units_that_are_groups_of_their_own_need_no_second_stage() -> None:
    lm = layered()
    agent = Auto(LLMPruningVectorEnv(10, problem=toy_problem(lm)), importance=importance(lm))
    agent.mean = torch.zeros(UNITS.n)
    assert agent._allocation_steps(500, 5000) == 500


def test_losses_that_are_not_numbers_are_the_worst_of_a_step() -> None:
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


@pytest.mark.parametrize("allocation", [1000, 1, 2])
def test_a_saved_agent_goes_on_as_if_nothing_had_happened(allocation: int, tmp_path: Path) -> None:
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


def test_what_cannot_be_is_refused() -> None:
    problem = toy_problem(layered())
    with pytest.raises(PruningError, match="population 5 does not consist of pairs"):
        AutoConfig(population=5)
    with pytest.raises(PruningError, match="evaluates 4 masks a step but .* num_envs 2"):
        Auto(LLMPruningVectorEnv(2, problem=problem), AutoConfig(population=4))
    with pytest.raises(PruningError, match="needs the vector environment, not LLMPruningEnv"):
        Auto(LLMPruningEnv(problem=problem))


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("more", [[], ["--reward=repaired", "--reward-refit=2"]])
def test_a_crashed_run_goes_on(
    more: list[str], options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [*options, "--agent=auto", "--population=4", "--total-timesteps=1", *more]
    few += ["--checkpoint-every=3"]
    step = Auto._learn_step

    def crash(self: Auto, *arguments: int) -> dict[str, float]:
        if self.steps + 1 == 6:
            raise Crash
        return step(self, *arguments)

    assert train(*few, f"--output={tmp_path / 'undisturbed'}") == 0
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Auto, "_learn_step", crash)
        train(*few, f"--output={tmp_path / 'crashed'}")
    assert train(f"--resume={tmp_path / 'crashed'}") == 0
    assert_same_run(tmp_path / "undisturbed", tmp_path / "crashed")


@pytest.mark.parametrize("granularity", ["channels", "blocks", "layers"])
def test_any_granularity_has_a_run(granularity: str, options: list[str], tmp_path: Path) -> None:
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
def test_what_it_cannot_do_is_refused_before_a_run_exists(
    option: str, message: str, options: list[str], tmp_path: Path
) -> None:
    with pytest.raises(PruningError, match=message):
        train(*options, "--agent=auto", option, f"--output={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
