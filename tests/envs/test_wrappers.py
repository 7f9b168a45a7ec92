"""Whatever an agent does in a Box becomes a mask of exactly the budget."""

import doctest
import pickle
import warnings
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import pgprune
from helpers.tiny import ID
from pgprune.envs import (
    DensityAction,
    LLMPruningEnv,
    LLMPruningVectorEnv,
    ScoreAction,
    VectorDensityAction,
    VectorScoreAction,
    wrappers,
)
from pgprune.metrics import METRICS

UNITS, GROUPS = 24, 6  # 3 layers, each of 2 kv groups and 6 channels
actions = arrays(np.float32, UNITS, elements=st.floats(-1, 1, width=32))
densities = arrays(np.float32, GROUPS, elements=st.floats(-1, 1, width=32))
few = settings(max_examples=50, deadline=None)


@pytest.fixture(scope="module")
def env(arguments: dict[str, Any]) -> LLMPruningEnv:
    return LLMPruningEnv(**arguments)


def kept_counts(env: LLMPruningEnv, mask: np.ndarray) -> list[int]:
    """Units kept of each group, in the groups' order: heads, channels of layer 0, 1, 2."""
    return [int(mask[group.start : group.stop].sum()) for group in env.units.groups]


@pytest.mark.parametrize("wrapper", [ScoreAction, DensityAction])
def test_both_checkers_pass_without_a_warning(arguments, wrapper):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env_for_sb3(wrapper(gym.make(ID, **arguments)))
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        check_env(wrapper(gym.make(ID, **arguments)))


@given(scores=actions)
@few
def test_scores_become_the_budgets_mask(env, scores):
    mask = ScoreAction(env).action(scores)
    np.testing.assert_array_equal(mask, env.budget.round(torch.from_numpy(scores)).numpy())
    heads, channels = kept_counts(env, mask)[::2], kept_counts(env, mask)[1::2]
    assert sum(heads) == 3 and sum(channels) == 9


@given(action=densities)
@few
def test_densities_meet_the_budget_and_fill_by_importance(env, action):
    importance = np.random.default_rng(0).permutation(UNITS)
    mask = DensityAction(env, importance).action(action)
    counts = kept_counts(env, mask)
    assert sum(counts[::2]) == 3 and sum(counts[1::2]) == 9
    for group, count in zip(env.units.groups, counts, strict=True):
        members = np.arange(group.start, group.stop)
        best = members[np.argsort(-importance[members])][:count]
        assert mask[best].all(), "what is kept is the most important of its group"


def test_densities_that_meet_the_budget_are_what_is_kept(env):
    wanted = [2, 1, 1, 6, 0, 2]  # of 2 heads and of 6 channels in each layer: 3 and 9 in all
    sizes = np.array([2, 6] * 3)
    action = 2 * np.array(wanted) / sizes - 1
    mask = DensityAction(env, np.arange(UNITS)).action(action)
    assert kept_counts(env, mask) == wanted
    shifted = DensityAction(env, np.arange(UNITS)).action(action + np.tile([0.3, -0.4], 3))
    np.testing.assert_array_equal(shifted, mask, "only differences within a pool count")


def test_density_is_filled_in_the_order_of_wanda_sp_by_default(env):
    even = DensityAction(env).action(np.zeros(GROUPS))
    windows = env.problem.stream.head(128)
    scores = METRICS["wanda-sp"](env.problem.lm, windows, env.budget, 0).scores
    channels = env.units.groups[1]
    kept = torch.from_numpy(even)[channels.start : channels.stop].bool()
    inside = scores[channels.start : channels.stop]
    assert kept.sum() == 3 and inside[kept].min() > inside[~kept].max()


@pytest.mark.parametrize("kind", ["units", "parameters"])
def test_one_pool_is_never_exceeded(arguments, kind):
    env = LLMPruningEnv(**arguments, budget=kind)
    generator = np.random.default_rng(0)
    for _ in range(20):
        mask = DensityAction(env, np.arange(UNITS)).action(generator.uniform(-1, 1, GROUPS))
        kept = env.budget.kept_share(torch.from_numpy(mask[None]))
        assert 0.4 < float(kept) <= env.budget.target_share


@pytest.mark.parametrize(
    ("single", "vector"), [(ScoreAction, VectorScoreAction), (DensityAction, VectorDensityAction)]
)
def test_vector_wrappers_do_the_same(env, single, vector):
    envs = vector(LLMPruningVectorEnv(3, problem=env.problem))
    one = single(env)
    assert envs.single_action_space == one.action_space
    batch = envs.action_space.sample()
    masks = envs.actions(batch)
    np.testing.assert_array_equal(masks, np.stack([one.action(row) for row in batch]))
    of_tensor = envs.actions(torch.from_numpy(batch))
    assert isinstance(of_tensor, torch.Tensor) and of_tensor.tolist() == masks.tolist()
    envs.reset(seed=1)
    assert isinstance(envs.step(torch.from_numpy(batch))[1], torch.Tensor)
    envs.reset(seed=1)
    _, rewards, *_ = envs.step(batch)
    one.reset(seed=1)
    assert rewards[0] == pytest.approx(one.step(batch[0])[1])


def test_a_wrapped_spec_can_be_pickled_and_made_again(arguments):
    env = DensityAction(gym.make(ID, **arguments), np.arange(UNITS))
    again = pickle.loads(pickle.dumps(env.spec)).make()
    assert isinstance(again, DensityAction)
    action = env.action_space.sample()
    np.testing.assert_array_equal(env.action(action), again.action(action))


def test_a_local_budget_leaves_densities_nothing_to_say(env):
    problem = replace(env.problem, budget=env.budget.local())
    wrapped = DensityAction(LLMPruningEnv(problem=problem), np.arange(UNITS))
    first, second = (wrapped.action(wrapped.action_space.sample()) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_examples_of_the_documentation_run(monkeypatch):
    monkeypatch.setattr(wrappers, "_WINDOWS", 8)  # of the built-in model's text for wanda-sp
    result = doctest.testmod(wrappers)
    assert result.attempted and not result.failed


def test_mistakes_are_named(env):
    with pytest.raises(pgprune.PruningError, match="not an LLM pruning environment"):
        ScoreAction(gym.make("CartPole-v1"))
    with pytest.raises(pgprune.PruningError, match=r"shape \(24,\), got \(23,\)"):
        ScoreAction(env).action(np.zeros(23))
    with pytest.raises(pgprune.PruningError, match=r"shape \(6,\), got \(24,\)"):
        DensityAction(env, np.arange(UNITS)).action(np.zeros(24))
    with pytest.raises(pgprune.PruningError, match=r"importance must have shape \(24,\)"):
        DensityAction(env, np.arange(6))
    with pytest.raises(pgprune.PruningError, match="not-a-number"):
        ScoreAction(env).action(np.full(UNITS, np.nan))
