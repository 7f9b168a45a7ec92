"""SAC (Haarnoja et al. 2018, arXiv 1812.05905) by Stable-Baselines3, on densities or scores."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pgprune.agents.sb3_config import Sb3Config
from pgprune.utils.options import option


@dataclass(frozen=True)
class SacConfig(Sb3Config):
    """SAC: soft actor-critic."""

    sac_masks: int = option(11, "sac: masks of a step, the start's included", minimum=3)
    sac_learning_rate: float = option(3e-3, "sac: Adam's step size, down to 0", above=0)

    name: ClassVar[str] = "sac"
    reference: ClassVar[bool] = True
    figures: ClassVar[tuple[str, ...]] = ("train/critic_loss", "train/ent_coef")

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """SAC on a ``PruningVecEnv``, whose actions begin near zero."""
        from stable_baselines3 import SAC

        from pgprune.agents.sb3_critic import critic_options

        return SAC(ent_coef="auto_0.1", **critic_options(env, rate, seed))
