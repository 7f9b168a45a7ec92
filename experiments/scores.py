"""The records of a benchmark by agent and task, and their scores.

The score of a run on a task is the share that it made of the way from random masks to the best
that is known: (random loss - loss) / (random loss - best loss). The loss is that of the agent's
answer on the run's validation batch; the random one is the mean over the seeds' random masks, and
the best the lowest that any run under the same seed, which has the same batch, had at any look.
"""

import math
import statistics
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from pgprune.experiments.cells import RANDOM
from pgprune.experiments.records import key_of
from pgprune.experiments.statistics import (
    Estimate,
    Numbers,
    estimate,
    interquartile_mean,
    paired_difference,
)
from pgprune.utils.jsonl import Record

GRID = np.linspace(0, 1, 11)
"""Shares of the budget at which learning curves are compared."""


class Scores:
    """What a benchmark's records say.

    Args:
        records: of the benchmark.

    Attributes:
        tasks: by name.
        agents: by name, random masks not among them.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._runs = {key_of(one): one for one in records if "curve" in one}
        self.tasks = sorted({task for _, task, _ in self._runs})
        self.agents = sorted({agent for agent, _, _ in self._runs} - {RANDOM})

    def runs(self, agent: str, task: str) -> dict[int, Record]:
        """Returns the runs of an agent on a task, by seed."""
        return {seed: one for (a, t, seed), one in self._runs.items() if (a, t) == (agent, task)}

    def losses(self, agent: str, task: str) -> list[float]:
        """Returns an agent's final losses on a task by seed, or the losses of random masks."""
        at = 0 if agent == RANDOM else -1
        return [run["curve"][at]["loss"] for run in self.runs(agent, task).values()]

    def perplexities(self, agent: str, task: str, name: str) -> list[float]:
        """Returns perplexities of an agent's answers by seed; infinite if not finite."""
        found = [run["perplexity"][name] for run in self.runs(agent, task).values()]
        return [math.inf if value is None else value for value in found]

    def some_run(self, task: str) -> Record:
        """Returns one record of a task, for values that all of them share."""
        return next(one for (_, name, _), one in self._runs.items() if name == task)

    @cached_property
    def ends(self) -> dict[str, dict[int, tuple[float, float]]]:
        """The losses that are score 0 and score 1, of each task that has both, by seed."""
        found = {}
        for task in self.tasks:
            lowest: dict[int, float] = {}
            for (_, name, seed), run in self._runs.items():
                if name == task:
                    # Any look counts, not only the last: an agent may leave the best mask again.
                    losses = [point["loss"] for point in run["curve"]]
                    lowest[seed] = min(*losses, lowest.get(seed, math.inf))
            # Random masks must lose to something, else the score divides by nothing.
            random = self.losses(RANDOM, task)
            if random and max(lowest.values()) < statistics.fmean(random):
                found[task] = {
                    seed: (statistics.fmean(random), low) for seed, low in lowest.items()
                }
        return found

    def seeds(self, agent: str) -> list[int]:
        """Returns the seeds that an agent has on all tasks with scores."""
        # A score compares the same seeds on every task, else easy seeds could stand for all.
        sets = [set(self.runs(agent, task)) for task in self.ends]
        return sorted(set.intersection(*sets)) if sets else []

    def of(self, agent: str, part: float = 1.0) -> Numbers:
        """Computes an agent's scores after a part of its evaluations, (seeds, tasks)."""
        rows = [
            [
                _score(self.runs(agent, task)[seed], ends[seed], part)
                for task, ends in self.ends.items()
            ]
            for seed in self.seeds(agent)
        ]
        return np.array(rows)  # (seeds, tasks)

    def mean(self, agent: str, part: float = 1.0) -> Estimate:
        """Computes the interquartile mean of an agent's scores, with its interval."""
        return estimate(interquartile_mean, self.of(agent, part))

    @cached_property
    def ranked(self) -> list[str]:
        """The agents that have all tasks, the best first."""
        whole = [agent for agent in self.agents if self.seeds(agent)]
        return sorted(whole, key=lambda agent: -float(interquartile_mean(self.of(agent))))

    def differences(
        self, one: str, other: str, column: str = "perplexity"
    ) -> dict[str, tuple[Estimate, int]]:
        """Computes paired differences of two agents' log-perplexities by task, and counts pairs.

        A pair is the runs of one seed; of several evaluation sets the mean counts. The column
        ``masked`` is the perplexity before any repair.
        """
        found = {}
        for task in self.tasks:
            runs, others = self.runs(one, task), self.runs(other, task)
            if seeds := sorted(runs.keys() & others.keys()):
                # Logarithms make a ratio of perplexities a difference, which pairs can average.
                values = [
                    np.array([log_perplexity(each[s], column) for s in seeds])
                    for each in (runs, others)
                ]
                found[task] = paired_difference(*values), len(seeds)
        return found


def curve_at(run: Record, column: str, part: float) -> float:
    """Reads a run's learning curve after a part of its evaluations, linear between looks.

    Args:
        run: its record.
        column: ``loss``, ``seconds``, ``tokens`` or ``mask_evaluations``.
        part: from 0 to 1; the last step of a run may lead it a little beyond the budget.
    """
    evaluations = [point["mask_evaluations"] for point in run["curve"]]
    values = [point[column] for point in run["curve"]]
    # Agents look after different numbers of evaluations, so curves are read between looks.
    return float(np.interp(part * evaluations[-1], evaluations, values))


def _score(run: Record, ends: tuple[float, float], part: float) -> float:
    random, best = ends
    return (random - curve_at(run, "loss", part)) / (random - best)


def log_perplexity(run: Record, column: str = "perplexity") -> float:
    """Averages a run's log-perplexity over evaluation sets; infinite if one is not finite."""
    values = [math.inf if value is None else value for value in run[column].values()]
    return statistics.fmean(map(math.log, values))
