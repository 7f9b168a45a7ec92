"""TD3 (Fujimoto et al. 2018, arXiv 1802.09477) by Stable-Baselines3, on densities or scores."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pgprune.agents.sb3_config import Sb3Config
from pgprune.utils.options import option


@dataclass(frozen=True)
class Td3Config(Sb3Config):
    """TD3: twin delayed deep deterministic policy gradient."""

    td3_masks: int = option(11, "td3: masks of a step, the start's included", minimum=3)
    td3_learning_rate: float = option(3e-3, "td3: Adam's step size, down to 0", above=0)
    td3_noise: float = option(0.5, "td3: deviation of the noise on actions from -1 to 1", above=0)

    name: ClassVar[str] = "td3"
    reference: ClassVar[bool] = True
    figures: ClassVar[tuple[str, ...]] = ("train/critic_loss", "train/actor_loss")

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """TD3 on a ``PruningVecEnv``, whose actions begin near zero."""
        import numpy as np
        from stable_baselines3 import TD3
        from stable_baselines3.common.noise import NormalActionNoise

        from pgprune.agents.sb3_critic import critic_options

        mean = np.zeros(len(start))
        noise = NormalActionNoise(mean, np.full_like(mean, self.td3_noise))
        return TD3(action_noise=noise, **critic_options(env, rate, seed))
