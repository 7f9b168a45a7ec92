"""Levels as actions: the reward is the loss of the weights that would be shipped."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from pgprune.budget.problem import Problem
from pgprune.envs import LevelAction, LLMPruningEnv, LLMPruningVectorEnv, VectorLevelAction
from pgprune.errors import PruningError
from pgprune.repair.repair import repaired


@pytest.fixture(scope="module")
def problem(arguments) -> Problem:
    return Problem.make(0, 2, **{**arguments, "granularity": "heads+channels"})


def test_an_action_is_a_level_of_each_group(problem: Problem, tmp_path: Path):
    env = LevelAction(LLMPruningEnv(problem=problem), tmp_path, windows=8)
    env.reset(seed=0)
    batch = problem.stream.fork(0).next()
    choice = np.minimum(2, env.action_space.nvec - 1)
    _, reward, *_, info = env.step(choice)
    levels = torch.as_tensor(choice).long()
    with repaired(problem.lm, env.levels.repair(levels)):
        loss = problem.lm.losses(env.levels.masks(levels[None]), batch).mean()
    assert reward == pytest.approx(-float(loss), abs=1e-5)
    assert reward == -info["loss"]


def test_all_rows_of_a_vector_environment(problem: Problem, tmp_path: Path):
    env = VectorLevelAction(LLMPruningVectorEnv(3, problem=problem), tmp_path, windows=8)
    env.reset(seed=0)
    choices = env.action_space.sample()
    rewards = env.step(choices)[1]
    env.reset(seed=0)
    assert torch.equal(env.step(torch.as_tensor(choices))[1].cpu(), torch.as_tensor(rewards))
    single = LevelAction(LLMPruningEnv(problem=problem), tmp_path)  # reads the same levels
    single.reset(seed=0)
    assert single.step(choices[0])[1] == pytest.approx(rewards[0], abs=1e-5)


def test_gymnasium_accepts_it(problem: Problem, tmp_path: Path):
    check_env(LevelAction(LLMPruningEnv(problem=problem), tmp_path, windows=8))


@pytest.mark.parametrize("wrong", ["too many", "negative", "fractions", "too large"])
def test_actions_that_are_no_levels(wrong: str, problem: Problem, tmp_path: Path):
    env = LevelAction(LLMPruningEnv(problem=problem), tmp_path, windows=8)
    env.reset(seed=0)
    none = np.zeros(len(problem.units.groups), dtype=np.int64)
    action = {
        "too many": np.append(none, 0),
        "negative": none - 1,
        "fractions": none + 0.5,
        "too large": none + 99,
    }[wrong]
    with pytest.raises(PruningError, match="whole numbers"):
        env.step(action)


def test_what_has_no_levels_is_refused(arguments, tmp_path: Path):
    blocks = Problem.make(0, 2, **{**arguments, "granularity": "blocks", "budget": "per-kind"})
    with pytest.raises(PruningError, match="not granularity blocks"):
        LevelAction(LLMPruningEnv(problem=blocks), tmp_path)
    with pytest.raises(PruningError, match="is not an LLM pruning environment"):
        LevelAction(gym.make("CartPole-v1"), tmp_path)
