"""Times pieces of work in turn, so that they compare although the machine's speed drifts.

Every round does each piece of work once, in alternating order, so that what slows the machine down
for a while slows all of them down. Ratios are of times of one round; what is reported is their
median over the rounds, and the quartiles.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from pgprune.utils.memory import memory_of
from pgprune.utils.progress import track

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""Clocks by name; ``processor`` is the time of this process, whatever else the machine does."""


@dataclass(frozen=True)
class Clock:
    """A clock by name, and the device that it waits for."""

    device: torch.device
    name: str = "wall"

    def __call__(self) -> float:
        """Returns seconds, once the device has done all its work."""
        if self.device.type != "cpu":  # which only queues work until somebody waits for it
            torch.accelerator.synchronize(self.device)
        return CLOCKS[self.name]()


Work = Callable[[Clock], Sequence[float]]
"""Does something and returns the seconds of its parts."""


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it; as text, the median and half their distance."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Computes the spread of some values."""
        low, median, high = np.percentile(values, [25, 50, 75]).tolist()
        return cls(median, low, high)

    @classmethod
    def of_ratios(cls, values: Sequence[float], others: Sequence[float]) -> "Spread":
        """Computes the spread of values over others of the same rounds."""
        return cls.of([value / other for value, other in zip(values, others, strict=True)])

    def __str__(self) -> str:
        return f"{self.median:.2f}±{(self.high - self.low) / 2:.2f}"


def measure_in_turn(
    works: Mapping[str, Work],
    repeats: int,
    clock: Clock,
    release: Callable[[], object] = lambda: None,
) -> tuple[dict[str, list[Sequence[float]]], dict[str, int | None]]:
    """Measures the memory of each piece of work, and then their times in turn.

    Args:
        works: by name.
        repeats: rounds.
        clock: for the times.
        release: frees what a piece of work keeps for its next time, which counts as its memory.

    Returns:
        By the name of the work: the seconds of its parts in each round; and the most bytes that it
        takes beside what is in memory already, None where that is not known.
    """
    taken = track(works.items(), "memory", unit="models")
    memory = {name: _memory(work, clock, release) for name, work in taken}
    rounds: dict[str, list[Sequence[float]]] = {name: [] for name in works}
    for number in track(range(repeats), "rounds"):
        # Alternating order: a drift within a round favours no piece of work over two rounds.
        for name in works if number % 2 == 0 else reversed(list(works)):
            rounds[name].append(works[name](clock))
    return rounds, memory


def weight_bytes(model: PreTrainedModel) -> int:
    """Returns the memory of parameters, tied ones once, and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _memory(work: Work, clock: Clock, release: Callable[[], object]) -> int | None:
    """Measures the memory of the second time: the first one is slower and keeps some for good."""
    work(clock)
    release()
    return memory_of(partial(work, clock), clock.device)
