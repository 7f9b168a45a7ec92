"""The vector environment: K rows of one evaluation are K environments."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from helpers.tiny import ID
from pgprune.budget.problem import Problem
from pgprune.envs import LLMPruningEnv, LLMPruningVectorEnv


@pytest.fixture
def masks(problem: Problem) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (4, 3, problem.units.n), dtype=np.int8)


def test_make_vec_takes_the_vector_environment(arguments):
    envs = gym.make_vec(ID, num_envs=3, **arguments)
    assert isinstance(envs, LLMPruningVectorEnv)
    assert repr(envs) == f"LLMPruningVectorEnv({ID}, num_envs=3)"
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert envs.action_space == gym.spaces.Box(0, 1, (3, 24), np.int8)
    assert envs.observation_space == gym.spaces.Box(0, 1, (3, 7), np.float32)
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    observations, rewards, *_ = envs.step(envs.action_space.sample())
    assert observations in envs.observation_space and rewards.shape == (3,)
    envs.close()


@pytest.mark.parametrize("horizon", [1, 3])
def test_rows_of_a_shared_batch_equal_single_environments(problem, masks, horizon):
    envs = LLMPruningVectorEnv(3, problem=problem, horizon=horizon, budget_penalty=2.0)
    singles = [
        LLMPruningEnv(problem=problem, horizon=horizon, budget_penalty=2.0) for _ in range(3)
    ]
    envs.reset(seed=7)
    for env in singles:
        env.reset(seed=7)
    for actions in masks:
        observations, rewards, ends, _, info = envs.step(actions)
        for row, env in enumerate(singles):
            observation, reward, ended, truncated, single_info = env.step(actions[row])
            last = info["final_obs"] if ended else observations
            np.testing.assert_array_equal(last[row], observation)
            assert rewards[row] == pytest.approx(reward, abs=1e-10)
            assert ends[row] == ended and not truncated
            for key, value in single_info.items():
                np.testing.assert_allclose(info[key][row], value, atol=1e-10)
            if ended:
                env.reset()


@pytest.mark.parametrize("horizon", [1, 3])
def test_rows_of_their_own_batches_equal_gymnasiums_vectorisation(problem, masks, horizon):
    envs = LLMPruningVectorEnv(3, problem=problem, horizon=horizon, shared_batch=False)
    sync = SyncVectorEnv(
        [lambda: LLMPruningEnv(problem=problem, horizon=horizon)] * 3,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    assert data_equivalence(envs.reset(seed=7), sync.reset(seed=7), exact=True)
    for actions in masks:
        *ours, our_info = envs.step(actions)
        *theirs, their_info = sync.step(actions)
        assert data_equivalence(ours, theirs, exact=True)
        for key, value in their_info.items():  # ours also describes the step beside final_info
            assert data_equivalence(our_info[key], value, exact=True), key


def test_masks_of_a_step_are_evaluated_in_one_call(problem, masks, monkeypatch):
    calls = []
    losses = problem.lm.losses

    def counted(masks: torch.Tensor, input_ids: torch.Tensor, fill: None) -> torch.Tensor:
        calls.append((len(masks), tuple(input_ids.shape)))
        return losses(masks, input_ids, fill)

    monkeypatch.setattr(problem.lm, "losses", counted)
    LLMPruningVectorEnv(3, problem=problem).step(masks[0])
    assert calls == [(3, (2, 16))]


def test_tensors_in_tensors_out(problem, masks):
    envs = LLMPruningVectorEnv(3, problem=problem, budget_penalty=1.0)
    envs.reset(seed=0)
    *arrays, array_info = envs.step(masks[0])
    envs.reset(seed=0)
    *tensors, tensor_info = envs.step(torch.from_numpy(masks[0]))
    for array, tensor in zip(arrays, tensors, strict=True):
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(array, tensor.numpy())
    for key in ("loss", "kept_shares", "excess"):
        np.testing.assert_array_equal(array_info[key], tensor_info[key].numpy())
    np.testing.assert_array_equal(array_info["final_obs"][2], tensor_info["final_obs"][2].numpy())


def test_episodes_end_after_the_horizon(problem, masks):
    envs = LLMPruningVectorEnv(3, problem=problem, horizon=2)
    start, _ = envs.reset(seed=0)
    steps = [envs.step(actions) for actions in masks]
    assert [ends.tolist() for _, _, ends, _, _ in steps] == [[False] * 3, [True] * 3] * 2
    assert not any(truncated.any() for _, _, _, truncated, _ in steps)
    kept = problem.units.kept_shares(torch.from_numpy(masks[1])).numpy()
    observations, _, _, _, info = steps[1]
    np.testing.assert_array_equal(observations, start)
    np.testing.assert_allclose(np.stack(info["final_obs"])[:, :-1], kept, rtol=1e-6)
    np.testing.assert_array_equal(info["final_info"]["loss"], info["loss"])
    assert info["_final_obs"].all() and info["_final_info"].all() and info["_loss"].all()
    assert "final_obs" not in steps[0][4]


def test_returned_arrays_are_fresh(problem, masks):
    envs = LLMPruningVectorEnv(3, problem=problem, render_mode="ansi")
    envs.reset(seed=0)
    *first, info = envs.step(masks[0])
    frames = envs.render()
    for array in (*first, *(info[key] for key in ("loss", "kept_shares", "_loss"))):
        array[:] = 0
    assert envs.render() == frames
    assert info["final_info"]["_loss"].all() and info["final_info"]["loss"].all()
    envs.reset(seed=0)
    assert (envs.step(masks[0])[1] < 0).all()
