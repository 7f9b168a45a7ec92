"""SAC and TD3 by Stable-Baselines3: their options and their construction.

They act in densities or scores. Their critic learns what an action is worth from all steps so far,
whose batches differ. So one mask of each step is that of the start, and rewards are counted from
its reward.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pgprune.agents.stable_baselines import Sb3Config
from pgprune.utils.options import option

_BUFFER = 10_000  # actions that are remembered


@dataclass(frozen=True)
class SacConfig(Sb3Config):
    """SAC: soft actor-critic.

    Source: Haarnoja et al. 2018, arXiv 1812.05905.
    """

    sac_masks: int = option(11, "sac: masks per step, including the initial one", minimum=3)
    sac_learning_rate: float = option(
        3e-3, "sac: initial step size of Adam, falls to 0", above=0, maximum=10
    )

    name: ClassVar[str] = "sac"
    actions: ClassVar[tuple[str, ...]] = ("density", "score")
    reference: ClassVar[bool] = True
    figures: ClassVar[tuple[str, ...]] = ("train/critic_loss", "train/ent_coef")

    @property
    def masks(self) -> int:
        """Masks of a step, the start's included."""
        return self.sac_masks

    @property
    def learning_rate(self) -> float:
        """Adam's step size in the first step."""
        return self.sac_learning_rate

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """Makes SAC, whose actions begin near zero; the arguments are as in ``Sb3Config``."""
        from stable_baselines3 import SAC

        return SAC(ent_coef="auto_0.1", **_critic_options(env, rate, seed))


@dataclass(frozen=True)
class Td3Config(Sb3Config):
    """TD3: twin delayed deep deterministic policy gradient.

    Source: Fujimoto et al. 2018, arXiv 1802.09477.
    """

    td3_masks: int = option(11, "td3: masks per step, including the initial one", minimum=3)
    td3_learning_rate: float = option(
        3e-3, "td3: initial step size of Adam, falls to 0", above=0, maximum=10
    )
    td3_noise: float = option(
        0.5, "td3: standard deviation of the noise on actions in [-1, 1]", above=0
    )

    name: ClassVar[str] = "td3"
    actions: ClassVar[tuple[str, ...]] = ("density", "score")
    reference: ClassVar[bool] = True
    figures: ClassVar[tuple[str, ...]] = ("train/critic_loss", "train/actor_loss")

    @property
    def masks(self) -> int:
        """Masks of a step, the start's included."""
        return self.td3_masks

    @property
    def learning_rate(self) -> float:
        """Adam's step size in the first step."""
        return self.td3_learning_rate

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """Makes TD3, whose actions begin near zero; the arguments are as in ``Sb3Config``."""
        import numpy as np
        from stable_baselines3 import TD3
        from stable_baselines3.common.noise import NormalActionNoise

        mean = np.zeros(len(start))
        noise = NormalActionNoise(mean, np.full_like(mean, self.td3_noise))
        return TD3(action_noise=noise, **_critic_options(env, rate, seed))


def _critic_options(env: Any, rate: Any, seed: int) -> dict[str, Any]:
    """Returns the options that SAC and TD3 share."""
    return {
        "policy": "MlpPolicy",
        "policy_kwargs": {"net_arch": [64, 64]},
        "env": env,
        "learning_rate": rate,
        "buffer_size": _BUFFER,
        "learning_starts": 0,  # no uniformly random actions first
        "batch_size": 128,
        "gamma": 0.0,  # an episode is one step
        "gradient_steps": -1,  # one for each mask
        "seed": seed,
        "device": "cpu",
    }
