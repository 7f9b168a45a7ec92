"""REINFORCE with a Bernoulli policy over the units: the paper's method (arXiv 2406.10576).

Each step draws N_s masks from the keep probabilities s, evaluates them on one calibration batch,
moves s against the policy gradient (Eq. 7) and projects it back onto the budget (Theorem 1).
No back-propagation, no optimizer state: the agent is s, one baseline and one random generator.
It lives on the model's device. A step's masks are drawn as soon as the step before has moved s, so
that they come to the host with the losses of that step: one wait for the device in a step.
"""

import math
from dataclasses import dataclass, replace
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
from pgprune.errors import PruningError
from pgprune.metrics import METRICS
from pgprune.metrics.initialization import initial_probabilities, metric_name
from pgprune.utils.options import Config, option
from pgprune.utils.transfer import read


@dataclass(frozen=True)
class ReinforceConfig(Config):
    """REINFORCE: the estimator and its step size."""

    masks_per_step: int = option(2, "masks drawn on each batch (the paper's N_s)", minimum=1)
    window: int = option(5, "window T of the moving-average baseline", minimum=1)
    learning_rate: float | None = option(
        None, "step size", above=0, unset="by the formula in docs/reinforce.md"
    )
    schedule: str = option(
        "cosine", "step size over time: down to 0, or constant", choices=["cosine", "constant"]
    )
    score: str = option(
        "preconditioned",
        "(m-s)/sqrt(s(1-s)) as in the released code, or (m-s)/(s(1-s)) as in Eq. 7 (paper)",
        choices=list(SCORES),
    )
    baseline: str = option(
        "moving-average", "what is subtracted from the losses", choices=list(BASELINES)
    )
    baseline_start: str = option(
        "first-loss",
        "moving average before the first step: that step's mean loss, or zero (Algorithm 1)",
        choices=["first-loss", "zero"],
    )
    sampling: str = option(
        "independent",
        "how masks of a step are drawn: independently, or in antithetic pairs (DisARM), whose "
        "difference needs no baseline",
        choices=list(SAMPLINGS),
    )
    control: str = option(
        "none",
        "what else is subtracted from the losses: the loss of the unpruned model on the same batch "
        "(dense), for one more evaluation a step",
        choices=list(CONTROLS),
    )

    def __post_init__(self) -> None:
        """Refuses what an option does not allow, and N_s - 1 as a divisor where it is zero."""
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
    """The step size for a number of mask evaluations: the paper's 2e-3 at its 30,000.

    The caps were chosen on grids; docs/reinforce.md has them and the command that regenerates them.
    A block or layer matters far more to the loss than a channel, so its probability needs smaller
    steps.
    """
    cap = 8e-3 if granularity in ("blocks", "layers") else 6e-2
    return min(cap, 2e-3 * 30_000 / total_timesteps)


@dataclass(frozen=True)
class Drawn:
    """The masks of the next step, drawn before they are asked for.

    Attributes:
        source: keep probabilities as the step before left them, (n,).
        stage: of progressive pruning.
        generator: the generator's state before the draw.
        probabilities: keep probabilities on the stage's budget, (n,).
        masks: (K, n) uint8 on the model's device.
        seen: the same masks, on the host as soon as they are read.
    """

    source: Tensor
    stage: int
    generator: Tensor
    probabilities: Tensor
    masks: Tensor
    seen: Tensor


class Reinforce(Agent):
    """The paper's agent, with the verbs of Stable-Baselines3.

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
    probabilities: Tensor = torch.empty(0)  # the policy's own, not the answer's

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
        self._drawn: Drawn | None = None
        self._generator, self._other_generator = (
            torch.Generator(device).manual_seed(seed) for _ in range(2)
        )

    def learning_rate(self, total_steps: int, total_timesteps: int) -> float:
        """The step size of the current step; each stage of progressive pruning starts anew."""
        rate = self.config.learning_rate
        if rate is None:
            rate = default_learning_rate(total_timesteps, self.budget.units.granularity)
        falls = self.config.schedule == "cosine"
        return rate * cosine(self._stage(self.steps, total_steps)[1]) if falls else rate

    def mask(self) -> Tensor:
        """The answer: the budget's rounding of the probabilities, (n,) uint8 on the CPU."""
        return self.budget.round(self.probabilities)

    def draw(self) -> Tensor:
        """One mask from the Bernoulli policy, (n,) uint8."""
        return sample(self.probabilities, 1, self._other_generator)[0]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resume needs, as if the next step's masks had not been drawn yet."""
        tensors, values = super().state()
        if self._drawn is not None:
            tensors["generator"] = self._drawn.generator
        return tensors, values

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Continues from what ``state`` returned; raises what every agent's does."""
        super().restore(tensors, values)
        self._drawn = None

    def _learn_step(self, total_steps: int, total_timesteps: int) -> dict[str, float]:
        """One step of Algorithm 1; returns its figures."""
        stage, _ = self._stage(self.steps, total_steps)
        rate = self.learning_rate(total_steps, total_timesteps)
        drawn = self._masks_of(stage)
        losses, control = self._controlled(drawn.seen)  # (K,), and what else is subtracted
        sampling, least = self.config.sampling, 2 if self.config.baseline == "leave-one-out" else 1
        usable = complete((losses - control).isfinite(), sampling)  # (K,)
        average, moved = self._moved(drawn, losses.where(usable, math.nan) - control, rate)
        moved = self._stages[stage].project(moved)
        self.probabilities = torch.where(usable.sum() >= least, moved, drawn.probabilities)
        found = (losses, usable, average, self._shares())
        losses, usable, average, shares = self._read(found, total_steps)
        if self._enough(usable, least):
            self.average = float(average)
        self.steps += 1
        baseline = math.nan if self.average is None else self.average
        own = {"train/baseline": baseline, "train/learning_rate": rate}
        return self._figures(losses, own, shares)

    def _stage(self, step: int, total_steps: int) -> tuple[int, float]:
        """The stage that a step belongs to, and the share of the stage that is done."""
        stage, rest = divmod(step * len(self._stages), total_steps)
        return stage, rest / total_steps

    def _masks_of(self, stage: int) -> Drawn:
        """The masks of this step: those that were drawn ahead, unless s or its stage changed."""
        drawn, self._drawn = self._drawn, None
        if drawn is not None:
            if drawn.source is self.probabilities and drawn.stage == stage:
                return drawn
            self._generator.set_state(drawn.generator)
        return self._draw(self.steps, stage)

    def _draw(self, step: int, stage: int) -> Drawn:
        """Draws the masks of a step, without waiting for the device."""
        before, source = self._generator.get_state(), self.probabilities
        may_begin = step == 0 or len(self._stages) > 1
        probabilities = self._stages[stage].project(source) if may_begin else source
        count, sampling = self.config.masks_per_step, self.config.sampling
        masks = sample(probabilities, count, self._generator, sampling)  # (K, n)
        return Drawn(source, stage, before, probabilities, masks, seen=masks)

    def _read(self, found: tuple[Tensor, ...], total_steps: int) -> tuple[Tensor, ...]:
        """What this step found on the host, and with it the masks of the next one."""
        if (step := self.steps + 1) >= total_steps:
            return read(*found)
        drawn = self._draw(step, self._stage(step, total_steps)[0])
        *on_host, seen = read(*found, drawn.masks)
        self._drawn = replace(drawn, seen=seen)
        return tuple(on_host)

    def _controlled(self, masks: Tensor) -> tuple[Tensor, Tensor | float]:
        """The losses of masks (K, n) on the next batch, (K,) float64, and the control variate."""
        if self.config.control == "none":
            return self._losses_there(masks), 0.0
        losses = self._losses_there(torch.cat([masks, torch.ones_like(masks[:1])]))
        return losses[:-1], losses[-1]

    def _moved(self, drawn: Drawn, losses: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        """Eqs. (8) and (7), without the projection: the moving average, and s, (n,)."""
        before: Tensor | float = losses.nanmean()
        if self.average is not None or self.config.baseline_start == "zero":
            before = self.average or 0.0
        average = moving_average(before, losses, self.config.window)
        advantage = advantages(losses, self.config.baseline, average)
        score, sampling = self.config.score, self.config.sampling
        step = gradient(drawn.masks, advantage, drawn.probabilities, score, sampling)
        return average, drawn.probabilities - rate * step

    def _from_metric(self, name: str) -> Tensor:
        problem = self.env.problem
        metric = METRICS[metric_name(name, self.budget.units.granularity)]
        importance = metric(problem.lm, problem.stream.head(128), self._stages[0], self.seed)
        return initial_probabilities(importance, self._stages[0])
