"""Says how long making a model takes and what memory, from a few evaluations of the model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from pgprune.agents.training.loaded import Loaded
from pgprune.budget.problem import TOKENS_PER_TIMESTEP
from pgprune.making.config import MakeConfig
from pgprune.utils.progress import phase

_ROUNDS = 2  # of evaluations that are timed; the first one warms up, the faster one counts
_FITTING = 4  # evaluations that refitting costs on the same tokens: twice a pass, and its products
_SURE = 400  # windows of each text that are usually enough for a standard error of 1 %
_ROWS = 4  # models that the search evaluates: dense, one-shot, masked and as shipped
_DISK = 2e8  # bytes a second that are loaded or written
_TRAINED = 20  # bytes of a trained weight in float32: itself, gradient, two moments, the best


@dataclass(frozen=True)
class Forecast:
    """What was measured and counted of a search before it began.

    Attributes:
        seconds: of the dense model on 1,024 tokens.
        masked_seconds: of a mask within the budget on 1,024 tokens.
        parameters: of the dense model.
        kept: parameters that such a mask leaves.
        itemsize: bytes of a weight.
        evaluations: of masks in the search.
        fitted: tokens that refitted weights are computed from.
        judged: tokens that the result is evaluated on.
    """

    seconds: float
    masked_seconds: float
    parameters: int
    kept: int
    itemsize: int
    evaluations: int
    fitted: int
    judged: int

    @classmethod
    def of(cls, loaded: Loaded) -> "Forecast":
        """Measures two evaluations of the model that is loaded."""
        settings, problem = loaded.settings, loaded.problem
        lm, units = problem.lm, problem.units
        batch = problem.stream.head(problem.stream.batch_size)
        scores = torch.rand(units.n, generator=torch.Generator().manual_seed(0))
        mask = problem.budget.round(scores.double())
        tokens = lm.meter.tokens
        with phase("measuring an evaluation"):
            dense, masked = (
                _fastest(partial(lm.losses, mask[None], batch)) for mask in (units.ones(), mask)
            )
        lm.meter.tokens = tokens  # no cost of the search
        per = TOKENS_PER_TIMESTEP / batch.numel()
        return cls(
            seconds=dense * per,
            masked_seconds=masked * per,
            parameters=lm.parameters,
            kept=lm.parameters - units.pruned_parameters(mask),
            itemsize=lm.dtype.itemsize,
            evaluations=settings.run.total_timesteps,
            fitted=loaded.repair_windows.numel(),
            judged=sum(min(_SURE, len(ids)) * ids.shape[1] for ids in loaded.windows.values()),
        )

    def training_memory(self, train: str) -> int:
        """Returns the bytes of teacher and student, and what is kept for trained weights.

        Args:
            train: ``layers`` or ``lora``, whose adapters are few.
        """
        both = (self.parameters + self.kept) * self.itemsize
        return both + (self.kept * (_TRAINED - self.itemsize) if train == "layers" else 0)

    def recovery_tokens(self, minutes: float) -> int:
        """Returns how many tokens the dense model can teach in some minutes.

        The teacher and the student run forward, and the student backward, which takes twice its
        time forward.
        """
        share = self.kept / self.parameters
        update = self.seconds * (1 + 3 * share) * 1.15  # AdamW and held-out windows
        return max(1, int(60 * minutes / update * TOKENS_PER_TIMESTEP))


class Step(NamedTuple):
    """A stage to come: where, what it does, about how long and with about what memory."""

    name: str
    directory: str
    what: str
    seconds: float
    memory: int


def steps(forecast: Forecast, config: MakeConfig) -> list[Step]:
    """Says what will be done; memory is that of weights and what is kept for each of them."""
    per = TOKENS_PER_TIMESTEP
    weights, kept = (count * forecast.itemsize for count in (forecast.parameters, forecast.kept))
    search = (
        forecast.evaluations * forecast.masked_seconds
        + _FITTING * forecast.fitted / per * forecast.seconds
        + _ROWS * forecast.judged / per * forecast.seconds
    )
    what = f"{forecast.evaluations:,} masks, with refitted weights"
    found = [Step("search", "search", what, search, weights)]
    if config.recovery_minutes is not None:
        tokens = forecast.recovery_tokens(config.recovery_minutes)
        judging = 2 * forecast.judged / per * forecast.seconds
        seconds = 60 * config.recovery_minutes + judging
        what = f"distillation from the dense model, about {tokens:,} tokens"
        found.append(
            Step("recovery", "recovered", what, seconds, forecast.training_memory("layers"))
        )
    for name in config.formats:
        seconds = 2 * (weights + kept) / _DISK
        found.append(Step(f"export {name}", name, "files", seconds, weights + kept))
    judging = forecast.judged / per * forecast.masked_seconds
    found.append(Step("evaluation", config.formats[0], "of what was written", judging, kept))
    return found


def _fastest(work: Callable[[], object]) -> float:
    """Times work a few times; returns the fewest seconds."""
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def total_seconds(planned: Sequence[Step]) -> float:
    """Adds up the seconds of all stages."""
    return sum(step.seconds for step in planned)
