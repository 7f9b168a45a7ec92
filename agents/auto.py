"""The recommended agent: a policy gradient over how much each layer keeps, then over single units.

A metric ranks the units of a layer from a few forward passes, but does not compare layers. So the
policy has one number for each (layer, kind), which is added to the metric's scores of that group
before the budget rounds them to a mask. The policy is a Gaussian over these offsets, a few dozen
numbers even for a 70B model, and learns by the natural policy gradient: the mean and deviations
follow what the better half of each step's masks have in common. Masks of a step share one batch
and come in antithetic pairs, so that neither the batch nor the loss at the mean is noise.

A few hundred evaluations are enough for that. The others, if there are many, learn single units
with one keep probability for each, as in ``agents/reinforce.py``, around the mask found so far.

Source: separable natural evolution strategies (Wierstra et al. 2014, JMLR 15, Algorithm 6), which
are REINFORCE with a Gaussian policy, natural gradients and rank-based advantages; and then the
paper's REINFORCE (arXiv 2406.10576), with leave-one-out baselines.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from pgprune.agents.base import Agent, lowest
from pgprune.agents.estimators import advantages, cosine, gradient, sample
from pgprune.agents.logits import on_budget
from pgprune.agents.offsets import masks_of, scores_of
from pgprune.errors import PruningError
from pgprune.metrics import Importance
from pgprune.utils.options import Config, option

_ALLOCATION = 300  # evaluations, after which offsets hardly improve
_MANY = 1000  # evaluations, from which on single units are worth learning
_SHARPNESS = 2.0  # of keep probabilities, by standard deviations of scores from the border


@dataclass(frozen=True)
class AutoConfig(Config):
    """The recommended agent: how widely it searches, and how long it learns layers only."""

    population: int = option(10, "auto: masks per step, in antithetic pairs", minimum=2)
    deviation: float = option(
        0.3, "auto: initial spread of the offsets, in standard deviations of the scores", above=0
    )
    allocation: int | None = option(
        None,
        "auto: evaluations spent on how much each layer keeps, before single units",
        minimum=1,
        unset=f"{_ALLOCATION} of {_MANY:,} or more, else all",
    )

    def __post_init__(self) -> None:
        """Refuses what an option does not allow, and a mask without its opposite."""
        super().__post_init__()
        if self.population % 2:
            raise PruningError(
                f"population {self.population} does not consist of pairs; choose an even number"
            )

    @property
    def masks(self) -> int:
        """Masks of a step."""
        return self.population

    def evaluations_of_layers(self, total_timesteps: int) -> int:
        """Returns the number of evaluations that learn layers; a short run may do fewer."""
        if self.allocation is not None:
            return self.allocation
        return _ALLOCATION if total_timesteps >= _MANY else total_timesteps


class Auto(Agent):
    """The recommended agent, with the methods of Stable-Baselines3.

    Args:
        env: the vector environment; its ``num_envs`` is the population.
        config: how widely it searches.
        importance: of the units, or the name of a metric; ``auto`` is ``stream-error`` for heads
            and channels.
        seed: of the masks and of the calibration stream.

    Attributes:
        scores: of the units, which offsets are added to, (n,) float64.
        mean: of the offsets, (groups,) float64; of single units, (n,), where the scope of the
            budget fixes what a layer keeps.
        average: mean of ``mean`` over all steps, where later ones weigh more, (groups,) float64.
        deviation: of the offsets, (groups,) float64.
        keep: probabilities of single units, (n,) float64; (0,) until they are learned.

    Raises:
        PruningError: the config does not fit the environment.
    """

    saved_tensors = ("scores", "mean", "deviation", "average", "keep")

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        config: AutoConfig | None = None,
        importance: Importance | str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(env, config.masks if config else None, seed)
        self.config = config or AutoConfig(population=env.num_envs)
        self.scores = scores_of(self.env, importance, seed)
        units = self.budget.units
        # Where the share of each layer is fixed, an offset of all its units would change nothing.
        offsets = len(units.groups) if self.budget.scope == "global" else units.n
        self.mean = torch.zeros(offsets, dtype=torch.float64)
        self.deviation = torch.full_like(self.mean, self.config.deviation)
        self.average = torch.zeros_like(self.mean)
        self.keep = torch.empty(0, dtype=torch.float64)

    def start_from(self, learned: Mapping[str, Tensor], mask: Tensor) -> None:
        """Starts from the offsets that were learned at another prune rate, and searches around.

        Args:
            learned: the tensors of the ``state`` of the agent at the other rate.
            mask: its answer, (n,); not used.
        """
        self.mean, self.average = learned["average"].clone(), learned["average"].clone()
        self.deviation = learned["deviation"].clone()

    @property
    def probabilities(self) -> Tensor:
        """Keep probability of each unit, (n,) float64; 0 or 1 while it learns layers."""
        return self.keep if len(self.keep) else super().probabilities

    def mask(self) -> Tensor:
        """Returns the mask of the average offsets or of the probabilities, (n,) uint8."""
        if len(self.keep):
            return self.budget.round(self.keep)
        return self._masks(self.average[None])[0]

    def draw(self) -> Tensor:
        """Draws one mask from the policy, (n,) uint8."""
        if len(self.keep):
            return sample(self.keep, 1, self._other_generator)[0]
        noise = torch.randn(1, len(self.mean), generator=self._other_generator).double()
        return self._masks(self.mean + self.deviation * noise)[0]

    def _learn_step(self, total_steps: int, total_timesteps: int) -> dict[str, float]:
        """Does one step of the current stage: learns offsets, or single units."""
        first = self.steps_for(self.config.evaluations_of_layers(total_timesteps))
        if self.budget.units.n == len(self.mean):  # each offset is of a single unit anyway
            first = total_steps
        if self.steps < first:
            losses = self._learn_offsets()
        else:
            losses = self._learn_units(self.steps - first, total_steps - first)
        self.steps += 1
        own = {"rollout/best_loss": lowest(losses), "train/deviation": float(self.deviation.mean())}
        return self._figures(losses, own)

    def _learn_offsets(self) -> Tensor:
        """Draws masks, evaluates them on one batch and moves to the better ones; losses (K,)."""
        size = (self.config.population // 2, len(self.mean))
        # Antithetic pairs: the loss at the mean cancels in the difference of a pair.
        half = torch.randn(size, generator=self._generator, dtype=torch.float64)  # (K/2, groups)
        noise = torch.cat([half, -half])  # (K, groups)
        masks = self._masks(self.mean + self.deviation * noise)  # (K, n)
        losses = self._losses(masks)  # (K,)
        if self._can_learn(losses.isfinite(), least=2):
            ranked = noise[losses.nan_to_num(torch.inf).argsort(stable=True)]  # the best first
            self.mean, self.deviation = natural_step(self.mean, self.deviation, ranked)
            # Step t has weight t, so that the average forgets the start.
            self.average = self.average.lerp(self.mean, 2 / (self.steps + 2))
        return losses

    def _learn_units(self, done: int, steps: int) -> Tensor:
        """Does one step of REINFORCE over single units; returns losses (K,)."""
        if not len(self.keep):
            self.keep = self.start_of_units()
        masks = sample(self.keep, self.config.population, self._generator)  # (K, n)
        losses = self._losses(masks)  # (K,)
        usable = losses.isfinite()
        if self._can_learn(usable, least=2):  # a single loss has no other as its baseline
            # Eqs. (7) and (8) of the paper, with the other masks' mean loss as the baseline.
            advantage = advantages(losses[usable], "leave-one-out", 0.0)
            step = gradient(masks[usable], advantage, self.keep, "preconditioned")  # (n,)
            rate = unit_learning_rate(steps) * cosine(done / steps)
            self.keep = self.budget.project(self.keep - rate * step)
        return losses

    def start_of_units(self) -> Tensor:
        """Returns keep probabilities (n,), by how far scores are from the threshold of ``mask``."""
        scores = self.scores + self.average[self.budget.units.group]  # (n,)
        return self.budget.project(on_budget(_SHARPNESS * scores, self.budget).sigmoid())

    def _masks(self, offsets: Tensor) -> Tensor:
        """Rounds offsets to masks: (K, groups) -> (K, n) uint8."""
        return masks_of(offsets, self.scores, self.budget)


def natural_step(mean: Tensor, deviation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Takes one step of the natural gradient (Algorithm 6).

    Args:
        mean: of the offsets, (groups,).
        deviation: of the offsets, (groups,).
        noise: standard normal numbers behind the masks, (K, groups), those of the best mask first.

    Returns:
        The mean and the deviation after the step.
    """
    count, dimensions = noise.shape
    advantage = advantages_of_ranks(count)  # (K,)
    # The paper's default rate for a diagonal covariance; the mean moves with rate 1.
    rate = (3 + math.log(dimensions)) / (5 * math.sqrt(dimensions))
    # sigma <- sigma exp(rate / 2 sum_k u_k (eps_k^2 - 1)), mu <- mu + sigma sum_k u_k eps_k
    # The exponential keeps deviations positive.
    grown = (rate / 2 * (advantage @ (noise.square() - 1))).exp()  # (groups,)
    return mean + deviation * (advantage @ noise), deviation * grown


def unit_learning_rate(steps: int) -> float:
    """Returns the first step size for single units, which falls to 0 over ``steps`` steps."""
    # Under the cosine schedule, the step sizes of a long run sum to about 20.
    return min(0.3, 40 / steps)


def advantages_of_ranks(count: int) -> Tensor:
    """Returns the advantage of each rank, the best first, (count,) float64; the sum is 0."""
    # u_k = max(0, log(K/2 + 1) - log k) / sum - 1/K (Table 1)
    ranks = torch.arange(1, count + 1, dtype=torch.float64)
    gains = (math.log(count / 2 + 1) - ranks.log()).clamp(min=0)
    return gains / gains.sum() - 1 / count
