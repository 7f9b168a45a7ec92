"""Copies and pickles of environments, as tree searches and samplers make them."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest

from helpers.tiny import ID
from pgprune.envs import DensityAction, LevelAction, ScoreAction

COPY = {"deepcopy": copy.deepcopy, "pickle": lambda env: pickle.loads(pickle.dumps(env))}
OPTIONS = [
    {},
    {"reward": "repaired"},
    {"loss": "kl"},
    {"calibration_samples": 4},
    {"shared_batch": False, "horizon": 2},
    {"granularity": "values+channels", "executor": "sliced"},
]


@pytest.fixture(params=COPY.values(), ids=COPY)
def copied(request):
    return request.param


def rewards(env, actions) -> list[float]:
    found = []
    for action in actions:
        _, reward, ended, *_ = env.step(action)
        found.append(reward)
        if np.all(ended):
            env.reset()
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("make", [gym.make, lambda *a, **o: gym.make_vec(*a, num_envs=2, **o)])
def test_a_copy_continues_where_the_environment_was(arguments, copied, make, options):
    env = make(ID, **arguments, **options)
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(5)]
    rewards(env, actions[:2])
    other, unwrapped = copied(env), copied(env.unwrapped)
    expected = rewards(env, actions[2:])
    np.testing.assert_array_equal(rewards(other, actions[2:]), expected)
    np.testing.assert_array_equal(rewards(unwrapped, actions[2:]), expected)
    np.testing.assert_array_equal(rewards(copied(env), actions), rewards(env, actions))


@pytest.mark.parametrize("wrapper", [ScoreAction, DensityAction, LevelAction])
def test_a_copy_of_a_wrapper(arguments, copied, wrapper, tmp_path):
    more = {"folder": tmp_path, "windows": 4} if wrapper is LevelAction else {}
    env = wrapper(gym.make(ID, **arguments), **more)
    env.reset(seed=0)
    other, actions = copied(env), [env.action_space.sample() for _ in range(3)]
    assert rewards(other, actions) == rewards(env, actions)


def test_a_deep_copy_shares_the_frozen_model(arguments):
    """A tree of a thousand copies holds one model."""
    env = gym.make(ID, **arguments)
    env.reset(seed=0)
    other = copy.deepcopy(env).unwrapped
    assert other.problem is env.unwrapped.problem
    assert other.judge.lm is env.unwrapped.judge.lm
    assert other.stream is not env.unwrapped.stream
