"""REINFORCE with a Bernoulli policy over the units: the paper's method (arXiv 2406.10576).

Each step draws N_s masks from the keep probabilities s, evaluates them on one calibration batch,
moves s against the policy gradient (Eq. 7) and projects it back onto the budget (Theorem 1).
There is no back-propagation and no optimizer state: the agent is s, one baseline and one random
generator, on the model's device.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from pgprune.agents.base import COUNTS, Agent
from pgprune.agents.estimators import (
    BASELINES,
    CONTROLS,
    SAMPLINGS,
    SCORES,
    advantages,
    complete,
    cosine,
    gradient,
    moving_average,
    sample,
)
from pgprune.envs import LLMPruningVectorEnv
from pgprune.errors import PruningError
from pgprune.metrics import METRICS, Importance
from pgprune.metrics.base import FINE
from pgprune.metrics.initialization import (
    PROGRESSIVE,
    InitConfig,
    initial_probabilities,
    metric_name,
    progressive_rates,
)
from pgprune.utils.options import Config, option
from pgprune.utils.transfer import read


@dataclass(frozen=True)
class ReinforceConfig(Config):
    """REINFORCE: the estimator and its step size."""

    masks_per_step: int = option(
        2, "reinforce: masks drawn on each batch (the paper's N_s)", minimum=1
    )
    window: int = option(5, "reinforce: window T of the moving-average baseline", minimum=1)
    learning_rate: float | None = option(
        None,
        "reinforce: step size",
        above=0,
        maximum=10,
        unset="by the formula in docs/reinforce.md",
    )
    schedule: str = option(
        "cosine",
        "reinforce: step size over time: falls to 0, or stays",
        choices=["cosine", "constant"],
    )
    score: str = option(
        "preconditioned",
        "reinforce: gradient of released code (preconditioned) or Eq. 7 (paper)",
        choices=list(SCORES),
    )
    baseline: str = option(
        "moving-average", "reinforce: what is subtracted from the losses", choices=list(BASELINES)
    )
    baseline_start: str = option(
        "first-loss",
        "reinforce: initial average: the first step's mean loss, or 0 (Algorithm 1)",
        choices=["first-loss", "zero"],
    )
    sampling: str = option(
        "independent",
        "reinforce: draw masks independently or in antithetic pairs (DisARM)",
        choices=list(SAMPLINGS),
    )
    control: str = option(
        "none",
        "reinforce: subtract the dense model's loss too; one more evaluation a step",
        choices=list(CONTROLS),
    )

    def __post_init__(self) -> None:
        """Refuses values that an option does not allow, and a divisor N_s - 1 of zero."""
        super().__post_init__()
        for name, value in (("score", self.score), ("baseline", self.baseline)):
            if self.masks_per_step < 2 and value in ("preconditioned", "leave-one-out"):
                raise PruningError(
                    f"{name} {value!r} needs masks_per_step of 2 or more, got "
                    f"{self.masks_per_step}; for one mask take score paper and baseline "
                    "moving-average or none"
                )
        pairs = self.sampling == "antithetic"
        if pairs and self.masks_per_step % 2:
            raise PruningError(
                f"masks_per_step {self.masks_per_step} does not consist of the pairs of sampling "
                "antithetic; choose an even number"
            )
        if pairs and self.baseline == "leave-one-out":
            raise PruningError(
                "baseline leave-one-out takes masks for independent, which pairs of sampling "
                "antithetic are not; choose one of the two"
            )
        if self.control == "dense" and (pairs or self.baseline == "leave-one-out"):
            other = "sampling antithetic" if pairs else "baseline leave-one-out"
            raise PruningError(
                f"control dense cancels in the differences of {other}, so it would only cost "
                "evaluations; choose one of the two"
            )

    @property
    def masks(self) -> int:
        """Masks of a step, the unpruned model included where it is evaluated."""
        return self.masks_per_step + (self.control == "dense")


def default_learning_rate(total_timesteps: int, granularity: str = "heads+channels") -> float:
    """Returns the step size for a number of mask evaluations: the paper's 2e-3 at its 30,000.

    The caps were chosen on grids; docs/reinforce.md has them and the command that regenerates them.
    A block, layer or expert matters far more to the loss than a channel, so its probability needs
    smaller steps.
    """
    cap = 6e-2 if granularity in FINE else 8e-3
    return min(cap, 2e-3 * 30_000 / total_timesteps)


class Reinforce(Agent):
    """The paper's agent, with the methods of Stable-Baselines3.

    Args:
        env: the vector environment; its ``num_envs`` is N_s, the masks per step, or one more with
            ``control="dense"``.
        config: estimator and step size.
        initial: keep probabilities (n,), or the name of a metric to start from.
        prune_rates: rates of the stages of progressive pruning; by default the budget's own.
        seed: of the masks and of the calibration stream.

    Attributes:
        probabilities: keep probabilities s, (n,) float64 on the model's device.
        average: moving average of the losses (delta), None before the first step.

    Raises:
        PruningError: the config does not fit the environment.
    """

    saved_tensors = ("probabilities",)
    saved_values = ("average", *COUNTS)

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        config: ReinforceConfig | None = None,
        initial: Tensor | str = "auto",
        prune_rates: list[float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(env, config.masks if config else None, seed)
        self.config = config or ReinforceConfig(masks_per_step=env.num_envs)
        rates = prune_rates or [self.budget.prune_rate]
        self._stages = [self.budget.with_rate(rate) for rate in rates]
        if isinstance(initial, str):
            initial = self._from_metric(initial)
        if initial.shape != (self.budget.units.n,):
            raise PruningError(
                f"initial probabilities must have shape ({self.budget.units.n},), got "
                f"{tuple(initial.shape)}"
            )
        device = self.env.problem.lm.device
        self.probabilities = initial.to(device, torch.float64)  # (n,)
        self.average: float | None = None
        self._generator, self._other_generator = (
            torch.Generator(device).manual_seed(seed) for _ in range(2)
        )

    @property
    def probabilities(self) -> Tensor:
        """Keep probabilities s, (n,) float64 on the model's device."""
        return self._probabilities

    @probabilities.setter
    def probabilities(self, probabilities: Tensor) -> None:
        self._probabilities = probabilities

    @classmethod
    def from_settings(
        cls,
        env: LLMPruningVectorEnv,
        config: Any,
        importance: Importance,
        init: InitConfig,
        seed: int,
        action: str | None = None,
    ) -> Agent:
        """Makes the agent of a run; arguments and errors are as in ``Agent``."""
        rates, start, transform = None, env.budget, init.init_transform
        if init.init == PROGRESSIVE:
            rates = progressive_rates(start.prune_rate)
            start = start.with_rate(rates[0])
            if transform == "auto":  # random scores have no outliers, also of blocks
                transform = "sigmoid-norm"
        initial = initial_probabilities(importance, start, transform, init.init_constant)
        return cls(env, config, initial, rates, seed)

    def start_from(self, learned: Mapping[str, Tensor], mask: Tensor) -> None:
        """Starts from the mean of its own probabilities and those learned at another rate.

        What was learned says which units matter; the metric still orders those that were all kept.

        Args:
            learned: the tensors of the ``state`` of the agent at the other rate.
            mask: its answer, (n,); not used.
        """
        before = learned["probabilities"].to(self.probabilities.device)
        self.probabilities = self.budget.project((self.probabilities + before) / 2)

    def learning_rate(self, total_steps: int, total_timesteps: int) -> float:
        """Returns the step size of the current step; each pruning stage restarts the schedule."""
        rate = self.config.learning_rate
        if rate is None:
            rate = default_learning_rate(total_timesteps, self.budget.units.granularity)
        falls = self.config.schedule == "cosine"
        return rate * cosine(self._stage(self.steps, total_steps)[1]) if falls else rate

    def mask(self) -> Tensor:
        """Returns the budget's rounding of the probabilities, (n,) uint8 on the CPU."""
        return self.budget.round(self.probabilities)

    def draw(self) -> Tensor:
        """Draws one mask from the Bernoulli policy, (n,) uint8."""
        return sample(self.probabilities, 1, self._other_generator)[0]

    def _learn_step(self, total_steps: int, total_timesteps: int) -> dict[str, float]:
        """Does one step of Algorithm 1; returns its figures."""
        config, kind = self.config, self.config.sampling
        stage, _ = self._stage(self.steps, total_steps)
        budget, rate = self._stages[stage], self.learning_rate(total_steps, total_timesteps)

        # 1. Draw masks from the policy (Eq. 2). Only probabilities that come from elsewhere may be
        # off the budget: the initial ones, and those of the stage before.
        s = self.probabilities
        if self.steps == 0 or len(self._stages) > 1:
            s = budget.project(s)
        masks = sample(s, config.masks_per_step, self._generator, kind)  # (K, n)

        # 2. Evaluate them on the next batch, beside the dense model if its loss is the control.
        dense = config.control == "dense"
        rows = torch.cat([masks, torch.ones_like(masks[:1])]) if dense else masks
        found = self._losses_on_device(rows)  # (K,), or (K + 1,)
        losses, control = (found[:-1], found[-1]) if dense else (found, 0.0)
        usable = complete((losses - control).isfinite(), kind)  # (K,)
        gains = losses.where(usable, math.nan) - control

        # 3. Move the baseline, which has the losses of this step inside it (Eq. 8).
        before: Tensor | float = gains.nanmean()
        if self.average is not None or config.baseline_start == "zero":
            before = self.average or 0.0
        average = moving_average(before, gains, config.window)

        # 4. Estimate the policy gradient (Eq. 7), step against it, and project onto the budget
        # (Theorem 1). Too few losses move nothing; torch.where decides without a wait for them.
        advantage = advantages(gains, config.baseline, average)  # (K,)
        step = gradient(masks, advantage, s, config.score, kind)  # (n,)
        least = 2 if config.baseline == "leave-one-out" else 1
        self.probabilities = torch.where(usable.sum() >= least, budget.project(s - rate * step), s)

        # 5. Read on the host what is logged and counted, all at once.
        losses, usable, average, shares = read(losses, usable, average, self._shares())
        if self._can_learn(usable, least):
            self.average = float(average)
        self.steps += 1
        baseline = math.nan if self.average is None else self.average
        own = {"train/baseline": baseline, "train/learning_rate": rate}
        return self._figures(losses, own, shares)

    def _stage(self, step: int, total_steps: int) -> tuple[int, float]:
        """Returns the stage of a step, and the share of the stage that is done."""
        stage, rest = divmod(step * len(self._stages), total_steps)
        return stage, rest / total_steps

    def _from_metric(self, name: str) -> Tensor:
        problem = self.env.problem
        metric = METRICS[metric_name(name, self.budget.units.granularity)]
        importance = metric(problem.lm, problem.stream.head(128), self._stages[0], self.seed)
        return initial_probabilities(importance, self._stages[0])
