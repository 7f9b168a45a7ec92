"""PPO, A2C, TRPO, SAC and TD3 by Stable-Baselines3: what they learn, at which size, and refuse."""

import sys
from typing import Any

import pytest
import torch

from helpers.layered import UNITS, importance, layered, left_to_gain
from helpers.tiny import AdditiveLM, toy_problem, toy_units
from pgprune import PruningError
from pgprune.agents.logits import BOUND, logits_of, on_budget
from pgprune.agents.sb3_env import PruningVecEnv
from pgprune.agents.sb3_off_policy import SacConfig, Td3Config
from pgprune.agents.sb3_on_policy import A2cConfig, PpoConfig, TrpoConfig
from pgprune.agents.stable_baselines import Sb3Agent, Sb3Config
from pgprune.budget.budget import Budget
from pgprune.envs import LLMPruningVectorEnv
from pgprune.metrics import Importance

ON_POLICY = [PpoConfig(ppo_masks=8), A2cConfig(a2c_masks=8), TrpoConfig(trpo_masks=8)]
OFF_POLICY = [SacConfig(sac_masks=8), Td3Config(td3_masks=8)]


def named(configs: list[Any]) -> Any:
    return pytest.mark.parametrize("config", configs, ids=lambda config: config.name)


def agent_for(config: Sb3Config, action: str | None = None, seed: int = 0) -> Sb3Agent:
    lm = layered()
    env = LLMPruningVectorEnv(config.masks, problem=toy_problem(lm))
    return Sb3Agent(env, config, importance(lm), seed, action)


def learned(agent: Sb3Agent, steps: int) -> Sb3Agent:
    return agent.learn(steps * agent.step_tokens // 1024)


@pytest.mark.parametrize(
    ("config", "action"),
    [(config, "mask") for config in ON_POLICY]
    + [(config, "density") for config in ON_POLICY + OFF_POLICY]
    + [(ON_POLICY[0], "score")],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_they_learn_which_layers_to_keep(config, action):
    agent = agent_for(config, action)
    lm, start = agent.env.problem.lm, agent.mask()
    assert left_to_gain(lm, learned(agent, 48).mask(), start, agent.budget) < 0.6
    assert agent.budget.excess(agent.mask()[None]) == 0


@named(ON_POLICY)
def test_they_are_stable_at_the_size_of_llama_7b(config):
    units = toy_units(layers=32, kv_heads=32, channels=11008)
    assert units.n == 353_280
    lm = AdditiveLM(units, torch.linspace(0, 2 / units.n, units.n, dtype=torch.float64))
    env = LLMPruningVectorEnv(config.masks, problem=toy_problem(lm))
    zeros = torch.zeros(units.n, dtype=torch.float64)
    nothing = Importance(zeros)
    agent = Sb3Agent(env, config, nothing, seed=0)
    start = float(agent.probabilities @ lm.worth)
    agent.learn(1, lambda agent, _: agent.steps < 3)
    assert agent.steps == 3
    assert float(agent.probabilities @ lm.worth) > start, "it keeps more of what is worth more"
    logits = agent.probabilities.logit()
    assert bool((logits.abs() <= BOUND + 1e-4).all())
    for pool in agent.budget.pools:
        kept = agent.probabilities[pool.members].sum()
        assert float(kept) == pytest.approx(pool.share, rel=1e-4)


@named(ON_POLICY + OFF_POLICY)
def test_the_same_seed_finds_the_same_whatever_else_draws(config):
    def disturbed(agent: Any, figures: dict[str, float]) -> None:
        torch.manual_seed(agent.steps)
        agent.draw()

    first, second, other = (agent_for(config, seed=seed) for seed in (3, 3, 4))
    total = 4 * first.step_tokens // 1024 or 1
    first.learn(total)
    second.learn(total, disturbed)
    other.learn(total)
    states = [agent.state()[0] for agent in (first, second, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


@named(OFF_POLICY)
def test_rewards_that_differ_by_rounding_alone_teach_nothing(config):
    env = LLMPruningVectorEnv(config.masks, problem=toy_problem(layered()))
    rewards = PruningVecEnv(env, reference=config.reference).rewards
    equal = torch.full((config.masks,), -3.9, dtype=torch.float64)
    assert not equal[:-1].mean() == equal[0], "a mean that is rounded"
    assert (rewards(equal) == 0).all()
    equal[0] += 1e-14
    assert (rewards(equal) == 0).all(), "and no scale of such a size"
    equal[0] += 1.0
    assert rewards(equal)[0] > 0 == rewards(equal)[1]


def test_masks_of_a_step_are_evaluated_in_one_call():
    agent = learned(agent_for(ON_POLICY[0]), 8)
    assert agent.env.problem.lm.calls == agent.steps == 8


def test_one_row_of_the_off_policy_agents_is_the_start(monkeypatch):
    agent = agent_for(OFF_POLICY[1])
    start, masks = agent.mask(), []
    step = agent.env.step
    monkeypatch.setattr(agent.env, "step", lambda rows: masks.append(rows) or step(rows))
    learned(agent, 8)
    assert len(masks[0]) == 8
    assert all((rows[-1] == masks[0][-1]).all() for rows in masks)
    assert int((masks[0][-1] != start.numpy()).sum()) <= 0.2 * UNITS.n, "the actor begins near zero"


def test_losses_that_are_not_numbers_teach_nothing():
    agent = agent_for(ON_POLICY[0])
    lm, losses = agent.env.problem.lm, agent.env.problem.lm.losses

    def broken(masks: torch.Tensor, *arguments: Any) -> torch.Tensor:
        found = losses(masks, *arguments)
        found[0] = torch.nan
        return found

    lm.losses = broken
    assert learned(agent, 8).skipped == agent.steps
    assert bool(agent.probabilities.isfinite().all())
    lm.losses = lambda masks, *_: torch.full((len(masks), 2), torch.nan)
    with pytest.raises(PruningError, match="nothing to learn from"):
        agent.learn(10_000)


@named(ON_POLICY)
def test_equal_losses_change_nothing(config):
    agent = agent_for(config)
    before = agent.probabilities
    agent.env.problem.lm.worth = torch.zeros(UNITS.n, dtype=torch.float64)
    assert torch.allclose(learned(agent, 8).probabilities, before, atol=1e-6)


@pytest.mark.parametrize("kind", ["per-kind", "units", "parameters"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_one_shift_of_a_pools_logits_meets_the_budget(kind, scope):
    budget = Budget(UNITS, 0.4, kind, scope)
    logits = torch.randn(UNITS.n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for above in (-2.0, 2.0):  # the budget is met from below and from above
        found = on_budget(logits + above, budget)
        for pool in budget.pools:
            shift = (logits - found)[pool.members]
            assert shift.std() == pytest.approx(0, abs=1e-12)
            kept = found[pool.members].sigmoid() @ pool.cost.double()
            assert float(kept) == pytest.approx(pool.share, rel=1e-9)


def test_logits_stay_within_their_bounds():
    certain = torch.arange(UNITS.n, dtype=torch.float64) % 2  # probabilities 0 and 1
    for rate in (0.5, 0.9):
        logits = logits_of(certain, Budget(UNITS, rate))
        assert float(logits.abs().max()) <= BOUND
        assert bool((logits[1::2] > logits[::2].max()).all())


@named(ON_POLICY + OFF_POLICY)
def test_a_saved_agent_predicts_but_learns_no_further(config, tmp_path):
    agent = learned(agent_for(config), 8)
    agent.save(tmp_path / "agent.safetensors")
    loaded = agent_for(config, seed=5)
    torch.manual_seed(0)
    loaded.load(tmp_path / "agent.safetensors")
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn), "loading draws from generators of its own"
    assert (loaded.predict()[0] == agent.predict()[0]).all()
    assert torch.equal(loaded.probabilities, agent.probabilities)
    assert loaded.draw().shape == (UNITS.n,)
    message = f"agent {config.name} cannot resume, because a checkpoint"
    with pytest.raises(PruningError, match=message):
        learned(loaded, 16)


def test_another_agents_state_is_refused(tmp_path):
    agent_for(ON_POLICY[0]).save(tmp_path / "agent.safetensors")
    with pytest.raises(PruningError, match="is ppo with action mask on 96 units, not a2c"):
        agent_for(ON_POLICY[1]).load(tmp_path / "agent.safetensors")


@named(OFF_POLICY)
def test_masks_are_refused_where_actions_are_continuous(config):
    message = f"action mask does not fit agent {config.name}, which acts in density or score"
    with pytest.raises(PruningError, match=message):
        agent_for(config, "mask")


def test_scores_are_refused_above_ten_thousand():
    lm = layered(toy_units(layers=1, kv_heads=2, channels=9_999))
    env = LLMPruningVectorEnv(8, problem=toy_problem(lm))
    message = "10001 dimensions here, more than the 10000 .* --action density"
    with pytest.raises(PruningError, match=message):
        Sb3Agent(env, ON_POLICY[0], importance(lm), action="score")


@pytest.mark.parametrize(
    ("config", "package"), [(ON_POLICY[0], "stable_baselines3"), (ON_POLICY[2], "sb3_contrib")]
)
def test_a_missing_package_is_named(config, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PruningError, match=rf"{package}; run `pip install 'pgprune\[agents\]'`"):
        agent_for(config)


def test_bad_settings_are_refused():
    with pytest.raises(PruningError, match="ppo_masks must be a whole number at least 2, not 1"):
        PpoConfig(ppo_masks=1)
    with pytest.raises(PruningError, match="ppo_clip must be a number above 0 and below 1"):
        PpoConfig(ppo_clip=1.0)
    env = LLMPruningVectorEnv(4, problem=toy_problem(layered()))
    with pytest.raises(PruningError, match="evaluates 16 masks .* has num_envs 4"):
        Sb3Agent(env, PpoConfig())
