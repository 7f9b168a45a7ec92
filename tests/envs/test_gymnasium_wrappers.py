"""The vector wrappers of Gymnasium report the figures of this environment, and specs rebuild it.

Before 1.4.0 ``RecordEpisodeStatistics`` reports 0 for episodes of one step that end in the mode
``SAME_STEP``, which is used here.
"""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import vector

from helpers.tiny import ID
from pgprune.budget.problem import Problem
from pgprune.envs import (
    DensityAction,
    LevelAction,
    LLMPruningEnv,
    LLMPruningVectorEnv,
    ScoreAction,
    VectorDensityAction,
    VectorLevelAction,
    VectorScoreAction,
)

STEPS = 6


def taken(env, problem: Problem) -> list[tuple]:
    """What a number of steps with given masks returns."""
    masks = np.random.default_rng(0).integers(0, 2, (STEPS, 3, problem.units.n), dtype=np.int8)
    env.reset(seed=0)
    return [env.step(actions) for actions in masks]


def make(problem: Problem, horizon: int = 1) -> LLMPruningVectorEnv:
    return LLMPruningVectorEnv(3, problem=problem, horizon=horizon)


@pytest.fixture
def plain(problem) -> np.ndarray:
    """Rewards without a wrapper, (steps, K)."""
    return np.array([step[1] for step in taken(make(problem), problem)])


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_returns_and_lengths_of_episodes(problem, horizon, plain):
    env = vector.RecordEpisodeStatistics(make(problem, horizon))
    steps = taken(env, problem)
    for last in range(horizon - 1, STEPS, horizon):
        episode = steps[last][4]["episode"]
        returns = plain[last - horizon + 1 : last + 1].sum(axis=0)
        np.testing.assert_allclose(episode["r"], returns, rtol=1e-5)
        assert episode["l"].tolist() == [horizon] * 3
    assert env.episode_count == 3 * (STEPS // horizon)
    np.testing.assert_allclose(sum(env.return_queue), plain.sum(), rtol=1e-5)


def test_normalised_rewards(problem, plain):
    """Episodes of one step: the spread of all rewards so far is that of their returns."""
    env = vector.NormalizeReward(make(problem))
    for step, (_, reward, *_) in enumerate(taken(env, problem), start=1):
        deviation = np.sqrt(plain[:step].var() + 1e-8)
        np.testing.assert_allclose(reward, plain[step - 1] / deviation, rtol=1e-2)  # a prior counts


@pytest.mark.parametrize("horizon", [2, 3])
@pytest.mark.parametrize("wrap", [vector.NormalizeReward, vector.RecordEpisodeStatistics])
def test_figures_are_those_of_gymnasiums_vectorisation(problem, horizon, wrap):
    sync = gym.vector.SyncVectorEnv(
        [lambda: LLMPruningEnv(problem=problem, horizon=horizon)] * 3,
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    ours = LLMPruningVectorEnv(3, problem=problem, horizon=horizon, shared_batch=False)
    for theirs, step in zip(taken(wrap(sync), problem), taken(wrap(ours), problem), strict=True):
        np.testing.assert_array_equal(step[1], theirs[1])
        assert ("episode" in step[4]) == ("episode" in theirs[4])
        if "episode" in step[4]:
            np.testing.assert_array_equal(step[4]["episode"]["r"], theirs[4]["episode"]["r"])


@pytest.mark.parametrize("wrap", [vector.NormalizeObservation, vector.FlattenObservation])
def test_wrappers_of_observations_ask_for_another_mode(problem, wrap):
    with pytest.raises(ValueError, match="got AutoresetMode.SAME_STEP"):
        wrap(make(problem))


def test_transformed_and_clipped_rewards(problem, plain):
    halved = taken(vector.TransformReward(make(problem), lambda reward: reward / 2), problem)
    np.testing.assert_array_equal([step[1] for step in halved], plain / 2)
    clipped = taken(vector.ClipReward(make(problem), -4.0, 0.0), problem)
    np.testing.assert_array_equal([step[1] for step in clipped], plain.clip(-4, 0))


def test_transformed_actions(problem, plain):
    env = make(problem)
    turned = vector.TransformAction(env, lambda masks: 1 - masks, env.action_space)
    again = vector.TransformAction(turned, lambda masks: 1 - masks, env.action_space)
    np.testing.assert_array_equal([step[1] for step in taken(again, problem)], plain)


def test_infos_as_lists(problem, plain):
    for rewards, (*_, infos) in zip(
        plain, taken(vector.DictInfoToList(make(problem)), problem), strict=True
    ):
        assert [info["loss"] for info in infos] == (-rewards).tolist()
        assert [info["final_info"]["loss"] for info in infos] == (-rewards).tolist()
        assert all(info["final_obs"].shape == (7,) for info in infos)


@pytest.mark.parametrize("wrapper", [ScoreAction, DensityAction, LevelAction])
def test_a_wrapped_environment_is_rebuilt_from_its_specification(arguments, wrapper, tmp_path):
    """Through JSON too, which arrays of importances and paths must pass."""
    more = {
        ScoreAction: {},
        DensityAction: {"importance": np.arange(24.0)},
        LevelAction: {"folder": tmp_path, "windows": 4},
    }[wrapper]
    env = wrapper(gym.make(ID, **arguments), **more)
    env.reset(seed=0)
    action = env.action_space.sample()
    reward = env.step(action)[1]
    for spec in (env.spec, type(env.spec).from_json(env.spec.to_json())):
        again = gym.make(spec)
        assert isinstance(again, wrapper)
        again.reset(seed=0)
        assert again.step(action)[1] == reward


def test_vector_wrappers_record_their_arguments(problem, tmp_path):
    env, importance = make(problem), np.arange(24.0)
    assert VectorScoreAction(env)._saved_kwargs == {}
    recorded = VectorDensityAction(env, importance)._saved_kwargs
    assert recorded == {"importance": importance.tolist()}
    recorded = VectorLevelAction(env, tmp_path, windows=4)._saved_kwargs
    assert recorded | {"damping": 0} == {"folder": str(tmp_path), "windows": 4, "damping": 0}


def test_a_vector_environment_is_rebuilt_from_its_specification(arguments):
    env = gym.make_vec(ID, num_envs=2, horizon=2, **arguments)
    again = gym.make_vec(type(env.spec).from_json(env.spec.to_json()))
    assert (again.num_envs, again.horizon) == (2, 2)
