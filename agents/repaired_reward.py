"""Rewards of masks as they will be after a least-squares repair: a repair that follows the policy.

To be called after each step of an agent that has keep probabilities:

    agent.learn(2000, RepairedReward(env, env.problem.stream.head(128)))
"""

from typing import Any

from torch import Tensor

from pgprune.envs import LLMPruningVectorEnv
from pgprune.expected_repair import ExpectedRepair
from pgprune.repair import DAMPING

EVERY = 10


class RepairedReward:
    """Gives an environment the repair that is best on average over a policy, again and again.

    Args:
        env: whose rewards it is about.
        windows: calibration token ids, (N, T).
        damping: as of the repair that the mask will get.
        every: steps from one repair to the next.

    Attributes:
        probabilities: (n,), the policy that the present repair is of; None before ``follow``.

    Raises:
        PruningError: as ``ExpectedRepair``.
    """

    def __init__(
        self,
        env: LLMPruningVectorEnv,
        windows: Tensor,
        damping: float = DAMPING,
        every: int = EVERY,
    ) -> None:
        self.probabilities: Tensor | None = None
        self._env = env
        self._every = every
        self._expected = ExpectedRepair(env.problem.lm, windows, damping)

    def follow(self, probabilities: Tensor) -> None:
        """Rewards masks as repaired for the policy with these keep probabilities, (n,)."""
        self.probabilities = probabilities.clone()
        self._env.repair = self._expected.at(probabilities)

    def __call__(self, agent: Any, figures: dict[str, float]) -> bool:
        """Follows the agent's policy if it is time to; never asks the agent to stop."""
        if self.probabilities is None or agent.steps % self._every == 0:
            self.follow(agent.probabilities)
        return True
