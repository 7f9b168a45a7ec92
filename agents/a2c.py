"""A2C (Mnih et al. 2016, arXiv 1602.01783) by Stable-Baselines3, on masks unless asked otherwise.

Log probabilities are means over the units, so the number that RMSprop adds to its denominator is
divided by how many there are.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pgprune.agents.sb3_config import Sb3Config
from pgprune.utils.options import option


@dataclass(frozen=True)
class A2cConfig(Sb3Config):
    """A2C: advantage actor-critic, one gradient step for each step."""

    a2c_masks: int = option(16, "a2c: masks of a step", minimum=2)
    a2c_learning_rate: float = option(0.05, "a2c: RMSprop's step size, down to 0", above=0)

    name: ClassVar[str] = "a2c"
    figures: ClassVar[tuple[str, ...]] = ("train/policy_loss",)

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """A2C on a ``PruningVecEnv``, from the logits or means ``start`` (d,)."""
        from stable_baselines3 import A2C

        from pgprune.agents.sb3_policy import unit_policy_options

        options: dict[str, Any] = {"vf_coef": 0.0, "normalize_advantage": True}
        options["rms_prop_eps"] = 1e-5 / len(start)
        return A2C(**options, **unit_policy_options(env, start, rate, seed))
