"""PPO, A2C and TRPO: policy gradients by Stable-Baselines3, on masks unless asked otherwise.

Episodes have one step (gamma is 0), and advantages are standardised in each step: its masks share
a batch, so that their mean is the baseline. Log probabilities are means over the units, so what is
small beside a gradient or a divergence in the library's defaults is divided by their number.

Sources: Schulman et al. 2017 (arXiv 1707.06347), Mnih et al. 2016 (arXiv 1602.01783), Schulman et
al. 2015 (arXiv 1502.05477).
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from pgprune.cli import check_fields

_DEVIATION = 0.25  # of a policy over a Box of width 2, at the beginning


@dataclass(frozen=True)
class PpoConfig:
    """PPO: proximal policy optimization, its ratio clipped for each unit."""

    ppo_masks: int = field(default=16, metadata={"help": "ppo: masks of a step", "minimum": 2})
    ppo_learning_rate: float = field(
        default=0.05, metadata={"help": "ppo: Adam's step size, down to 0", "above": 0}
    )
    ppo_epochs: int = field(default=4, metadata={"help": "ppo: updates in a step", "minimum": 1})
    ppo_clip: float = field(
        default=0.2,
        metadata={"help": "ppo: how far a ratio can move from 1", "above": 0, "below": 1},
    )

    name: ClassVar[str] = "ppo"
    package: ClassVar[str] = "stable_baselines3"
    reference: ClassVar[bool] = False
    figures: ClassVar[tuple[str, ...]] = ("train/approx_kl", "train/clip_fraction")

    def __post_init__(self) -> None:
        """Refuses what an option does not allow."""
        check_fields(self)

    @property
    def masks(self) -> int:
        """Masks of a step."""
        return self.ppo_masks

    @property
    def learning_rate(self) -> float:
        """Step size at the beginning."""
        return self.ppo_learning_rate

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """PPO on a ``PruningVecEnv``, from the logits or means ``start`` (d,)."""
        from pgprune.agents.sb3_policy import UnitPPO

        options: dict[str, Any] = {"n_epochs": self.ppo_epochs, "clip_range": self.ppo_clip}
        return UnitPPO(batch_size=env.num_envs, **options, **_shared(env, start, rate, seed))


@dataclass(frozen=True)
class A2cConfig:
    """A2C: advantage actor-critic, one gradient step for each step."""

    a2c_masks: int = field(default=16, metadata={"help": "a2c: masks of a step", "minimum": 2})
    a2c_learning_rate: float = field(
        default=0.05, metadata={"help": "a2c: RMSprop's step size, down to 0", "above": 0}
    )

    name: ClassVar[str] = "a2c"
    package: ClassVar[str] = "stable_baselines3"
    reference: ClassVar[bool] = False
    figures: ClassVar[tuple[str, ...]] = ("train/policy_loss",)

    def __post_init__(self) -> None:
        """Refuses what an option does not allow."""
        check_fields(self)

    @property
    def masks(self) -> int:
        """Masks of a step."""
        return self.a2c_masks

    @property
    def learning_rate(self) -> float:
        """Step size at the beginning."""
        return self.a2c_learning_rate

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """A2C on a ``PruningVecEnv``, from the logits or means ``start`` (d,)."""
        from stable_baselines3 import A2C

        options: dict[str, Any] = {"vf_coef": 0.0, "normalize_advantage": True}
        options["rms_prop_eps"] = 1e-5 / len(start)
        return A2C(**options, **_shared(env, start, rate, seed))


@dataclass(frozen=True)
class TrpoConfig:
    """TRPO: trust region policy optimization, the region's size counted for each unit."""

    trpo_masks: int = field(default=16, metadata={"help": "trpo: masks of a step", "minimum": 2})
    trpo_target_kl: float = field(
        default=0.002,
        metadata={"help": "trpo: divergence that a step may have, in nats a unit", "above": 0},
    )

    name: ClassVar[str] = "trpo"
    package: ClassVar[str] = "sb3_contrib"
    reference: ClassVar[bool] = False
    figures: ClassVar[tuple[str, ...]] = (
        "train/kl_divergence_loss",
        "train/is_line_search_success",
    )

    def __post_init__(self) -> None:
        """Refuses what an option does not allow."""
        check_fields(self)

    @property
    def masks(self) -> int:
        """Masks of a step."""
        return self.trpo_masks

    @property
    def learning_rate(self) -> float:
        """Of the critic, whose one number cancels; the trust region stays as it is."""
        return 1e-3

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """TRPO on a ``PruningVecEnv``, from the logits or means ``start`` (d,)."""
        from sb3_contrib import TRPO

        options: dict[str, Any] = {"batch_size": env.num_envs, "n_critic_updates": 1}
        options |= {"target_kl": self.trpo_target_kl, "cg_damping": 0.01 / len(start)}
        return TRPO(**options, **_shared(env, start, rate, seed))


def _shared(env: Any, start: Tensor, rate: Any, seed: int) -> dict[str, Any]:
    """What all three are made with."""
    from pgprune.agents.sb3_policy import UnitPolicy

    return {
        "policy": UnitPolicy,
        "policy_kwargs": {"start": start, "deviation": _DEVIATION},
        "env": env,
        "learning_rate": rate,
        "n_steps": 1,
        "gamma": 0.0,
        "seed": seed,
        "device": "cpu",
    }
