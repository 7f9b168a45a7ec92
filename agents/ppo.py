"""PPO (Schulman et al. 2017, arXiv 1707.06347) by Stable-Baselines3, its ratio clipped by the unit.

On masks unless asked otherwise; how its policy and its ratio differ from the library's is in
``sb3_policy.py``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pgprune.agents.sb3_config import Sb3Config
from pgprune.utils.options import option


@dataclass(frozen=True)
class PpoConfig(Sb3Config):
    """PPO: proximal policy optimization, its ratio clipped for each unit."""

    ppo_masks: int = option(16, "ppo: masks of a step", minimum=2)
    ppo_learning_rate: float = option(0.05, "ppo: Adam's step size, down to 0", above=0)
    ppo_epochs: int = option(4, "ppo: updates in a step", minimum=1)
    ppo_clip: float = option(0.2, "ppo: how far a ratio can move from 1", above=0, below=1)

    name: ClassVar[str] = "ppo"
    figures: ClassVar[tuple[str, ...]] = ("train/approx_kl", "train/clip_fraction")

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """PPO on a ``PruningVecEnv``, from the logits or means ``start`` (d,)."""
        from pgprune.agents.sb3_policy import UnitPPO, unit_policy_options

        options: dict[str, Any] = {"n_epochs": self.ppo_epochs, "clip_range": self.ppo_clip}
        options |= {"batch_size": env.num_envs}
        return UnitPPO(**options, **unit_policy_options(env, start, rate, seed))
