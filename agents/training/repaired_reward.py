"""Rewards masks by their loss after a least-squares repair, which follows the agent.

Call it after each step of an agent:

    agent.learn(2000, RepairedReward(env, env.problem.stream.head(128)))
"""

from typing import Any

from torch import Tensor

from pgprune.envs import LLMPruningVectorEnv
from pgprune.envs.nearby_repair import NearbyRepair
from pgprune.repair.fit import DAMPING

EVERY = 50
REFIT_WINDOWS = 64  # of a run's calibration text


class RepairedReward:
    """Lets an environment evaluate each mask with the weights that a repair gives it.

    Args:
        env: whose rewards change.
        windows: calibration token ids, (N, T).
        damping: the same as of the final repair.
        every: steps between updates of the second moments that repairs rest on; they are measured
            in the repaired model of the agent's current mask.

    Attributes:
        followed: (n,), the mask of the current moments; None before ``follow``.

    Raises:
        PruningError: as ``NearbyRepair``.
    """

    def __init__(
        self,
        env: LLMPruningVectorEnv,
        windows: Tensor,
        damping: float = DAMPING,
        every: int = EVERY,
    ) -> None:
        self.followed: Tensor | None = None
        self._env = env
        self._every = every
        env.judge.use(NearbyRepair(env.problem.lm, windows, damping))

    def follow(self, mask: Tensor) -> None:
        """Measures the moments in the repaired model of a mask, (n,)."""
        self.followed = mask
        self._env.judge.follow(mask)

    def __call__(self, agent: Any, figures: dict[str, float]) -> bool:
        """Follows the agent's mask when it is due; never asks the agent to stop."""
        if self.followed is None or agent.steps % self._every == 0:
            self.follow(agent.mask())
        return True
