"""An agent that nobody adapted learns: Stable-Baselines3's PPO, with the budget as a penalty."""

import itertools
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from pgprune.envs import LLMPruningEnv

ROLLOUT = 64


class Rewards(BaseCallback):
    """Remembers the reward of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[float] = []

    def _on_step(self) -> bool:
        self.rewards += self.locals["rewards"].tolist()
        return True


def test_an_unmodified_ppo_learns_which_blocks_to_keep(assets):
    env = LLMPruningEnv(
        model=str(assets / "models/stories260K"),  # 5 attention and 5 MLP blocks
        calibration=str(assets / "text/tinystories/tinystories_1000_clean.jsonl"),
        granularity="blocks",
        prune_rate=0.4,
        budget_penalty=10.0,  # keeping one of five blocks too many costs 2 nats
        batch_size=4,
        sequence_length=32,
    )
    rewards = Rewards()
    agent = PPO("MlpPolicy", env, n_steps=ROLLOUT, learning_rate=3e-3, seed=0, device="cpu")
    agent.learn(10 * ROLLOUT, callback=rewards)

    steps = torch.tensor(rewards.rewards)
    first, last = steps[: 2 * ROLLOUT].mean(), steps[-2 * ROLLOUT :].mean()
    assert last > first + 1, "the loss of the masks, or their excess, is clearly lower"

    observation, _ = env.reset()
    policy: Any = agent.policy.get_distribution(torch.as_tensor(observation)[None]).distribution
    answer = env.budget.round(policy.probs[0])
    assert env.units.prune_rate(answer) == pytest.approx(0.4)

    # All 100 masks that keep 3 of the 5 blocks of each kind, on text that no reward was taken from.
    triples = [set(kept) for kept in itertools.combinations(range(5), 3)]
    pairs = itertools.product(triples, repeat=2)
    masks = torch.tensor([[layer in kept for layer in range(5) for kept in pair] for pair in pairs])
    windows = env.stream.fork(seed=1).head(32)
    losses = env.problem.lm.losses(masks, windows).mean(dim=1)  # (100,)
    answers_loss = env.problem.lm.losses(answer[None], windows).mean()
    assert answers_loss < losses.mean()
    assert answers_loss < losses.quantile(0.1), "it is one of the best ten"
