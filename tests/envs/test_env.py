"""The environments are what Gymnasium says an environment is, on streams of text."""

import doctest
import pickle
import re
import warnings
from dataclasses import fields
from inspect import signature

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.wrappers import RecordEpisodeStatistics
from gymnasium.wrappers.vector import RecordEpisodeStatistics as VectorRecordEpisodeStatistics
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import pgprune
from helpers.tiny import ID
from pgprune import PruningError
from pgprune.budget.problem import PruningConfig
from pgprune.data.stream import DataConfig
from pgprune.envs import (
    DensityAction,
    LLMPruningEnv,
    LLMPruningVectorEnv,
    ScoreAction,
    llm_pruning,
)
from pgprune.models.load import ModelConfig


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "heads+channels"},
        {"granularity": "layers"},
        {"granularity": "heads+channels", "reward": "repaired"},
        {"granularity": "blocks", "reward": "repaired"},
    ],
)
def test_both_checkers_pass_without_a_warning(arguments, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ID, **arguments, **options).unwrapped
        check_env(env)
        check_env_for_sb3(env)


def test_spec_pickles_and_makes_the_same_environment(arguments):
    env = gym.make(ID, **arguments)
    again = pickle.loads(pickle.dumps(env.spec)).make()
    action = env.action_space.sample()
    for each in (env, again):
        each.reset(seed=5)
    assert data_equivalence(env.step(action), again.step(action), exact=True)


def test_make_needs_no_arguments():
    env = gym.make(ID)
    observation, _ = env.reset(seed=0)
    np.testing.assert_allclose(observation, [*np.ones(len(observation) - 1), 0.6])
    assert float(env.step(env.action_space.sample())[1]) < 0


def test_the_examples_of_the_documentation_run():
    result = doctest.testmod(llm_pruning)
    assert result.attempted and not result.failed


def test_record_episode_statistics(problem):
    env = RecordEpisodeStatistics(LLMPruningEnv(problem=problem))
    env.reset(seed=0)
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert info["episode"]["r"] == pytest.approx(reward) and info["episode"]["l"] == 1

    envs = VectorRecordEpisodeStatistics(LLMPruningVectorEnv(3, problem=problem, horizon=2))
    envs.reset(seed=0)
    rewards = [envs.step(envs.action_space.sample()) for _ in range(4)]
    assert "episode" not in rewards[0][4]
    episode = rewards[3][4]["episode"]
    np.testing.assert_allclose(episode["r"], rewards[2][1] + rewards[3][1])
    assert episode["l"].tolist() == [2, 2, 2]


def test_reward_is_minus_the_loss_minus_the_penalty(problem):
    env = LLMPruningEnv(problem=problem, budget_penalty=10.0)
    env.reset(seed=4)
    mask = problem.units.ones()
    mask[1:3] = 0  # one of two heads and one of six channels in the first of three layers
    observation, reward, _, _, info = env.step(mask.numpy())
    batch = problem.stream.fork(4).next()
    assert info["loss"] == pytest.approx(float(problem.lm.losses(mask[None], batch).mean()))
    assert info["excess"] == pytest.approx(17 / 18 - 0.5)
    assert reward == pytest.approx(-info["loss"] - 10 * info["excess"])
    np.testing.assert_allclose(info["kept_shares"], [1 / 2, 5 / 6, 1, 1, 1, 1])
    np.testing.assert_allclose(observation, [*info["kept_shares"], 0.5], rtol=1e-6)


def test_each_step_takes_the_next_batch_and_a_seed_starts_over(problem):
    env = LLMPruningEnv(problem=problem)
    dense = problem.units.ones().numpy()

    def losses(steps: int) -> list[float]:
        values = []
        for _ in range(steps):
            values.append(env.step(dense)[4]["loss"])
            env.reset()
        return values

    unseeded = losses(3)
    env.reset(seed=problem.stream.seed)
    assert losses(3) == unseeded, "before a seeded reset, the problem's own seed holds"
    env.reset(seed=8)
    first = losses(4)
    env.reset(seed=8)
    assert losses(4) == first
    assert len({*first, *unseeded}) == 7, "no two batches are the same"


def test_environments_that_share_a_problem_do_not_disturb_each_other(problem):
    dense = problem.units.ones().numpy()
    alone, other = LLMPruningEnv(problem=problem), LLMPruningEnv(problem=problem)
    alone.reset(seed=1)
    undisturbed = [alone.step(dense)[1] for _ in range(3)]
    alone.reset(seed=1)
    disturbed = []
    for _ in range(3):
        other.reset(seed=2)
        other.step(dense)
        disturbed.append(alone.step(dense)[1])
    assert disturbed == undisturbed
    assert problem.stream.position == 0


def test_ansi_shows_the_kept_share_of_each_layer_and_kind(problem):
    env = LLMPruningEnv(problem=problem, render_mode="ansi")
    env.reset(seed=0)
    mask = problem.units.ones().numpy()
    mask[2:8] = 0  # all channels of the first layer
    env.step(mask)
    picture = env.render()
    assert picture is not None
    head, kinds, *layers = str(picture).splitlines()
    assert head == "kept share (target 50.0%)" and kinds.split() == ["layer", "heads", "channels"]
    assert layers[0].split() == ["0", "█" * 20, "100.0%", "░" * 20, "0.0%"]
    assert layers[2].split() == ["2", "█" * 20, "100.0%", "█" * 20, "100.0%"]


def test_rgb_array_has_a_higher_bar_for_a_higher_share(problem):
    envs = LLMPruningVectorEnv(2, problem=problem, render_mode="rgb_array")
    envs.reset(seed=0)
    masks = np.ones((2, problem.units.n))
    masks[1, 2:5] = 0  # half of the channels of the first layer
    envs.step(masks)
    frames = envs.render()
    assert frames is not None
    full, half = frames
    assert full.dtype == np.uint8 and full.ndim == 3 and full.shape[2] == 3
    rows = np.flatnonzero((full != half).any(axis=(1, 2)))
    assert rows.min() > len(full) // 2, "only the lower panel, the channels, differs"
    columns = np.flatnonzero((full != half).any(axis=(0, 2)))
    assert columns.max() < full.shape[1] // 2, "only the first layer differs"


def test_render_without_a_mode_warns(problem):
    with pytest.warns(UserWarning, match="render_mode"):
        assert LLMPruningEnv(problem=problem).render() is None


def test_perplexity_of_the_evaluation_text(problem):
    envs = LLMPruningVectorEnv(problem=problem)
    mask = problem.units.ones()
    windows = problem.stream.head(5)
    loss = problem.lm.losses(mask[None], windows).mean()
    given = envs.perplexity(mask.numpy(), {"mine": windows})
    assert given == {"mine": pytest.approx(float(loss.exp()))}
    (value,) = envs.perplexity(mask).values()
    assert 1 < value < 1e6
    assert LLMPruningEnv(problem=problem).perplexity(mask) == envs.perplexity(mask)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.ones(23), r"shape \(1, 24\).*got shape \(1, 23\)"),
        (np.ones((1, 24)), r"got shape \(1, 1, 24\)"),
        (np.full(24, 2), "got the value 2"),
        (np.full(24, 0.5), "got the value 0.5"),
        (np.full(24, np.nan), "got the value nan"),
        (np.array(["keep"] * 24), "got <U4 entries"),
        (None, "got object entries"),
    ],
)
def test_what_is_not_a_mask_is_refused(problem, action, message):
    env = LLMPruningEnv(problem=problem)
    env.reset(seed=0)
    with pytest.raises(pgprune.PruningError, match=message):
        env.step(action)


@pytest.mark.parametrize(
    "action",
    [np.ones(24)[::-1], np.ones(24, ">f8"), torch.ones(24, requires_grad=True).bfloat16()],
    ids=["strides", "byte order", "tensor"],
)
def test_masks_in_any_memory(problem, action):
    env = LLMPruningEnv(problem=problem)
    env.reset(seed=0)
    assert env.step(action)[4]["kept_shares"].min() == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"num_envs": 0}, "num_envs 0"),
        ({"horizon": 0}, "horizon 0"),
        ({"budget_penalty": -1.0}, "budget_penalty -1.0"),
        ({"render_mode": "human"}, "'human'.*ansi, rgb_array"),
        ({"pruning_rate": 0.4}, "'pruning_rate'.*prune_rate"),
        ({"prune_rate": 1.4}, "prune_rate.*below 1"),
    ],
)
def test_bad_arguments_are_refused_at_once(argument, message):
    with pytest.raises(pgprune.PruningError, match=message):
        LLMPruningVectorEnv(**argument)


def test_a_problem_leaves_no_argument_for_its_configs(problem):
    with pytest.raises(pgprune.PruningError, match="prune_rate"):
        LLMPruningVectorEnv(problem=problem, prune_rate=0.2)


def test_the_documentation_names_every_argument():
    configs = (ModelConfig, DataConfig, PruningConfig)
    known = {field.name for config in configs for field in fields(config)}
    known |= signature(LLMPruningVectorEnv).parameters.keys() - {"num_envs", "options"}
    rows = re.findall(
        r"^ *\| (`.*?) *\| (?:str|int|float|bool|tuple|Problem)", LLMPruningEnv.__doc__, re.M
    )
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == known - {
        "shared_batch"
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_envs", 10**9), ("horizon", 0), ("seed", "x"), ("seed", 1.5), ("budget_penalty", "x")],
)
def test_an_argument_that_cannot_be(problem, name, value):
    with pytest.raises(PruningError, match=name):
        LLMPruningVectorEnv(problem=problem, **{name: value})


@pytest.mark.parametrize("action", [[[0], [0, 1]], ["a"], "text", None])
def test_an_action_that_is_no_array(problem, action):
    with pytest.raises(PruningError, match="actions must have shape"):
        LLMPruningEnv(problem=problem).step(action)
    with pytest.raises(PruningError, match="an action must"):
        ScoreAction(LLMPruningEnv(problem=problem)).action(action)
    with pytest.raises(PruningError, match="importance must"):
        DensityAction(LLMPruningEnv(problem=problem), action or "text")
