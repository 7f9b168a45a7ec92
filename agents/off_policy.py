"""SAC and TD3: actor-critic methods with a replay buffer by Stable-Baselines3, on densities.

Their critic learns what an action is worth from all steps so far, whose batches differ. So one
mask of each step is that of the start, and the others' rewards are counted from its reward.

Sources: Haarnoja et al. 2018 (arXiv 1812.05905), Fujimoto et al. 2018 (arXiv 1802.09477).
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from pgprune.cli import check_fields

_BUFFER = 10_000  # actions that are remembered


@dataclass(frozen=True)
class SacConfig:
    """SAC: soft actor-critic."""

    sac_masks: int = field(
        default=11, metadata={"help": "sac: masks of a step, the start's included", "minimum": 3}
    )
    sac_learning_rate: float = field(
        default=3e-3, metadata={"help": "sac: Adam's step size, down to 0", "above": 0}
    )

    name: ClassVar[str] = "sac"
    package: ClassVar[str] = "stable_baselines3"
    reference: ClassVar[bool] = True
    figures: ClassVar[tuple[str, ...]] = ("train/critic_loss", "train/ent_coef")

    def __post_init__(self) -> None:
        """Refuses what an option does not allow."""
        check_fields(self)

    @property
    def masks(self) -> int:
        """Masks of a step, the start's included."""
        return self.sac_masks

    @property
    def learning_rate(self) -> float:
        """Step size at the beginning."""
        return self.sac_learning_rate

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """SAC on a ``PruningVecEnv``, whose actions begin near zero."""
        from stable_baselines3 import SAC

        return SAC(ent_coef="auto_0.1", **_shared(env, rate, seed))


@dataclass(frozen=True)
class Td3Config:
    """TD3: twin delayed deep deterministic policy gradient."""

    td3_masks: int = field(
        default=11, metadata={"help": "td3: masks of a step, the start's included", "minimum": 3}
    )
    td3_learning_rate: float = field(
        default=3e-3, metadata={"help": "td3: Adam's step size, down to 0", "above": 0}
    )
    td3_noise: float = field(
        default=0.5,
        metadata={"help": "td3: deviation of the noise on actions from -1 to 1", "above": 0},
    )

    name: ClassVar[str] = "td3"
    package: ClassVar[str] = "stable_baselines3"
    reference: ClassVar[bool] = True
    figures: ClassVar[tuple[str, ...]] = ("train/critic_loss", "train/actor_loss")

    def __post_init__(self) -> None:
        """Refuses what an option does not allow."""
        check_fields(self)

    @property
    def masks(self) -> int:
        """Masks of a step, the start's included."""
        return self.td3_masks

    @property
    def learning_rate(self) -> float:
        """Step size at the beginning."""
        return self.td3_learning_rate

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """TD3 on a ``PruningVecEnv``, whose actions begin near zero."""
        import numpy as np
        from stable_baselines3 import TD3
        from stable_baselines3.common.noise import NormalActionNoise

        mean = np.zeros(len(start))
        noise = NormalActionNoise(mean, np.full_like(mean, self.td3_noise))
        return TD3(action_noise=noise, **_shared(env, rate, seed))


def _shared(env: Any, rate: Any, seed: int) -> dict[str, Any]:
    """What both are made with: a gradient step for each mask, and nothing beyond the reward."""
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
