"""Rewards of masks as they will be after a least-squares repair, which follows the agent.

To be called after each step of an agent:

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
    """Lets an environment judge each mask with the weights that a repair gives it.

    Args:
        env: whose rewards it is about.
        windows: calibration token ids, (N, T).
        damping: as of the repair that the mask will get.
        every: steps until the second moments, on which repairs rest, are taken anew in the
            repaired model of the agent's present answer.

    Attributes:
        followed: (n,), the mask that the present moments are of; None before ``follow``.

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
        """Takes the moments in the repaired model of a mask, (n,)."""
        self.followed = mask
        self._env.judge.follow(mask)

    def __call__(self, agent: Any, figures: dict[str, float]) -> bool:
        """Follows the agent's answer if it is time to; never asks the agent to stop."""
        if self.followed is None or agent.steps % self._every == 0:
            self.follow(agent.mask())
        return True
