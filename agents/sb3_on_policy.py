"""PPO, A2C and TRPO by Stable-Baselines3: their options and their construction.

They act in masks unless asked otherwise. Their policy and PPO's ratio count by the unit, unlike the
library's; ``sb3_policy.py`` has both. Log probabilities are means over the units there, so numbers
that the library adds to a gradient or a divergence are divided by the number of units here.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pgprune.agents.stable_baselines import Sb3Config
from pgprune.utils.options import option


@dataclass(frozen=True)
class PpoConfig(Sb3Config):
    """PPO: proximal policy optimization, its ratio clipped for each unit.

    Source: Schulman et al. 2017, arXiv 1707.06347.
    """

    ppo_masks: int = option(16, "ppo: masks per step", minimum=2)
    ppo_learning_rate: float = option(
        0.05, "ppo: initial step size of Adam, falls to 0", above=0, maximum=10
    )
    ppo_epochs: int = option(4, "ppo: updates per step", minimum=1)
    ppo_clip: float = option(
        0.2, "ppo: largest distance of a unit's ratio from 1", above=0, below=1
    )

    name: ClassVar[str] = "ppo"
    figures: ClassVar[tuple[str, ...]] = ("train/approx_kl", "train/clip_fraction")

    @property
    def masks(self) -> int:
        """Masks of a step."""
        return self.ppo_masks

    @property
    def learning_rate(self) -> float:
        """Adam's step size in the first step."""
        return self.ppo_learning_rate

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """Makes PPO; the arguments are as in ``Sb3Config``."""
        from pgprune.agents.sb3_policy import UnitPPO, unit_policy_options

        # One batch of all masks, since they are compared with each other.
        options: dict[str, Any] = {"n_epochs": self.ppo_epochs, "clip_range": self.ppo_clip}
        options |= {"batch_size": env.num_envs}
        return UnitPPO(**options, **unit_policy_options(env, start, rate, seed))


@dataclass(frozen=True)
class A2cConfig(Sb3Config):
    """A2C: advantage actor-critic, one gradient step for each step.

    Source: Mnih et al. 2016, arXiv 1602.01783.
    """

    a2c_masks: int = option(16, "a2c: masks per step", minimum=2)
    a2c_learning_rate: float = option(
        0.05, "a2c: initial step size of RMSprop, falls to 0", above=0, maximum=10
    )

    name: ClassVar[str] = "a2c"
    figures: ClassVar[tuple[str, ...]] = ("train/policy_loss",)

    @property
    def masks(self) -> int:
        """Masks of a step."""
        return self.a2c_masks

    @property
    def learning_rate(self) -> float:
        """RMSprop's step size in the first step."""
        return self.a2c_learning_rate

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """Makes A2C; the arguments are as in ``Sb3Config``."""
        from stable_baselines3 import A2C

        from pgprune.agents.sb3_policy import unit_policy_options

        options: dict[str, Any] = {"vf_coef": 0.0, "normalize_advantage": True}
        # Gradients of a mean over n units are n times smaller, so eps must be smaller as well.
        options["rms_prop_eps"] = 1e-5 / len(start)
        return A2C(**options, **unit_policy_options(env, start, rate, seed))


@dataclass(frozen=True)
class TrpoConfig(Sb3Config):
    """TRPO: trust region policy optimization, the region's size counted for each unit.

    Source: Schulman et al. 2015, arXiv 1502.05477.
    """

    trpo_masks: int = option(16, "trpo: masks per step", minimum=2)
    trpo_target_kl: float = option(
        0.002, "trpo: largest divergence of a step, in nats per unit", above=0
    )

    name: ClassVar[str] = "trpo"
    package: ClassVar[str] = "sb3_contrib"
    figures: ClassVar[tuple[str, ...]] = (
        "train/kl_divergence_loss",
        "train/is_line_search_success",
    )

    @property
    def masks(self) -> int:
        """Masks of a step."""
        return self.trpo_masks

    @property
    def learning_rate(self) -> float:
        """Step size of the critic, whose one number cancels; the trust region stays as it is."""
        return 1e-3

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """Makes TRPO; the arguments are as in ``Sb3Config``."""
        from sb3_contrib import TRPO

        from pgprune.agents.sb3_policy import unit_policy_options

        options: dict[str, Any] = {"batch_size": env.num_envs, "n_critic_updates": 1}
        # The divergence is a mean over units, so its curvature is n times smaller than of a sum.
        options |= {"target_kl": self.trpo_target_kl, "cg_damping": 0.01 / len(start)}
        return TRPO(**options, **unit_policy_options(env, start, rate, seed))
