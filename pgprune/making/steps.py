"""The stages of a make that are to come, with the time and the memory that they take."""

from collections.abc import Sequence
from typing import NamedTuple

from pgprune.budget.problem import TOKENS_PER_TIMESTEP
from pgprune.making.config import MakeConfig
from pgprune.making.forecast import Forecast
from pgprune.making.recovery import plan

_FITTING = 4  # evaluations that refitting costs on the same tokens: twice a pass, and its products
_ROWS = 4  # models that the search evaluates: dense, one-shot, masked and as shipped
_DISK = 2e8  # bytes a second that are loaded or written


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
    what = f"{forecast.evaluations:,} masks, and weights refitted to what is kept"
    found = [Step("search", "search", what, search, weights)]
    if config.recovery_minutes is not None:
        tokens = plan(forecast, config.recovery_minutes)["tokens"]
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


def total_seconds(planned: Sequence[Step]) -> float:
    """Adds up the seconds of all stages."""
    return sum(step.seconds for step in planned)
