"""What the actor-critic methods with a replay buffer have in common, SAC and TD3.

Their critic learns what an action is worth from all steps so far, whose batches differ. So one
mask of each step is that of the start, and the others' rewards are counted from its reward.
"""

from typing import Any

_BUFFER = 10_000  # actions that are remembered


def critic_options(env: Any, rate: Any, seed: int) -> dict[str, Any]:
    """What SAC and TD3 are made with: a gradient step for each mask, and nothing beyond the reward.

    Args:
        env: a ``PruningVecEnv``.
        rate: step size, by how much of the run is left.
        seed: of everything random.
    """
    return {
        "policy": "MlpPolicy",
        "policy_kwargs": {"net_arch": [64, 64]},
        "env": env,
        "learning_rate": rate,
        "buffer_size": _BUFFER,
        "learning_starts": 0,
        "batch_size": 128,
        "gamma": 0.0,
        "gradient_steps": -1,
        "seed": seed,
        "device": "cpu",
    }
