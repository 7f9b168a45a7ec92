"""Counts steps and costs of the methods that learn masks by back-propagation."""

import time
from collections.abc import Callable
from typing import Any

from pgprune.budget.problem import TOKENS_PER_TIMESTEP, Problem
from pgprune.utils.memory import peak_memory


def steps_for(problem: Problem, timesteps: int) -> int:
    """Counts the steps, each one batch forwards and backwards, that cost an agent's timesteps.

    An agent with two masks a step reads the same batches.
    """
    # A backward pass through frozen weights costs about as much as a forward pass.
    tokens = 2 * problem.stream.batch_size * problem.stream.sequence_length
    return max(1, -(-timesteps * TOKENS_PER_TIMESTEP // tokens))


def stopwatch(problem: Problem) -> Callable[[int], dict[str, Any]]:
    """Starts to measure the cost of learning.

    Returns:
        A function from the number of steps done to notes for results.json: steps, tokens,
        seconds, and the peak memory of the process in bytes.
    """
    started, tokens = time.perf_counter(), problem.lm.meter.tokens

    def notes(steps: int) -> dict[str, Any]:
        return {
            "steps": steps,
            "learning_tokens": problem.lm.meter.tokens - tokens,
            "learning_seconds": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory(problem.lm.device),
        }

    return notes
