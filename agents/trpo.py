"""TRPO (Schulman et al. 2015, arXiv 1502.05477) by sb3-contrib, on masks unless asked otherwise.

Log probabilities are means over the units, so the divergence that bounds a step is one of a unit,
and the damping of conjugate gradients is divided by their number.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pgprune.agents.sb3_config import Sb3Config
from pgprune.utils.options import option


@dataclass(frozen=True)
class TrpoConfig(Sb3Config):
    """TRPO: trust region policy optimization, the region's size counted for each unit."""

    trpo_masks: int = option(16, "trpo: masks of a step", minimum=2)
    trpo_target_kl: float = option(
        0.002, "trpo: divergence that a step may have, in nats a unit", above=0
    )

    name: ClassVar[str] = "trpo"
    package: ClassVar[str] = "sb3_contrib"
    figures: ClassVar[tuple[str, ...]] = (
        "train/kl_divergence_loss",
        "train/is_line_search_success",
    )

    @property
    def learning_rate(self) -> float:
        """Of the critic, whose one number cancels; the trust region stays as it is."""
        return 1e-3

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """TRPO on a ``PruningVecEnv``, from the logits or means ``start`` (d,)."""
        from sb3_contrib import TRPO

        from pgprune.agents.sb3_policy import unit_policy_options

        options: dict[str, Any] = {"batch_size": env.num_envs, "n_critic_updates": 1}
        options |= {"target_kl": self.trpo_target_kl, "cg_damping": 0.01 / len(start)}
        return TRPO(**options, **unit_policy_options(env, start, rate, seed))
