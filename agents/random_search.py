"""Random search: the reference that an agent which learns from its losses has to beat.

Each step draws offsets of every (layer, kind) around the metric's scores, with a constant spread,
and evaluates their masks and the best mask so far on one batch. The best of them is kept. The best
so far is evaluated again with the others on the same tokens, so an easy batch favours no mask.
"""

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from pgprune.agents.base import Agent, lowest
from pgprune.agents.offsets import masks_of, scores_of
from pgprune.metrics import Importance
from pgprune.utils.options import Config, option


@dataclass(frozen=True)
class RandomSearchConfig(Config):
    """Random search: how widely it searches."""

    candidates: int = option(
        10, "random-search: masks per step, including the best so far", minimum=2
    )
    spread: float = option(
        0.3, "random-search: spread of the offsets, in standard deviations of the scores", above=0
    )

    @property
    def masks(self) -> int:
        """Masks of a step."""
        return self.candidates


class RandomSearch(Agent):
    """The best of random masks, with the methods of Stable-Baselines3.

    Args:
        env: the vector environment; its ``num_envs`` is the number of candidates.
        config: how widely it searches.
        importance: of the units, or the name of a metric; ``auto`` is ``stream-error`` for heads
            and channels.
        seed: of the masks and of the calibration stream.

    Attributes:
        scores: of the units, which offsets are added to, (n,) float64.
        best: the best mask so far, (n,) uint8.

    Raises:
        PruningError: the config does not fit the environment.
    """

    saved_tensors = ("scores", "best")

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        config: RandomSearchConfig | None = None,
        importance: Importance | str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(env, config.masks if config else None, seed)
        self.config = config or RandomSearchConfig(candidates=env.num_envs)
        self.scores = scores_of(self.env, importance, seed)
        self.best = self.budget.round(self.scores)

    def mask(self) -> Tensor:
        """Returns the best mask so far, (n,) uint8 on the CPU."""
        return self.best.clone()

    def draw(self) -> Tensor:
        """Draws one mask as it tries them, (n,) uint8."""
        return self._masks(1, self._other_generator)[0]

    def _learn_step(self, total_steps: int, total_timesteps: int) -> dict[str, float]:
        """Evaluates the best so far and new masks on one batch, and keeps the best of all."""
        fresh = self._masks(self.config.candidates - 1, self._generator)
        masks = torch.cat([self.best[None], fresh])  # (K, n)
        losses = self._losses(masks)  # (K,)
        finite = losses.isfinite()
        if self._can_learn(finite):
            self.best = masks[losses.where(finite, torch.inf).argmin()].clone()
        self.steps += 1
        return self._figures(losses, {"rollout/best_loss": lowest(losses)})

    def _masks(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws masks of random offsets, (count, n) uint8."""
        size = (count, len(self.budget.units.groups))
        noise = torch.randn(size, generator=generator, dtype=torch.float64)  # (count, groups)
        return masks_of(self.config.spread * noise, self.scores, self.budget)
