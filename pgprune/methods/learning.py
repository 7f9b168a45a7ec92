"""What the methods that learn masks by back-propagation share: their budget and their cost."""

import time
from collections.abc import Callable
from typing import Any

from pgprune.masking.problem import TOKENS_PER_TIMESTEP, Problem
from pgprune.utils.memory import peak_memory


def steps_for(problem: Problem, timesteps: int) -> int:
    """Steps of one batch each, forwards and backwards, that cost as much as an agent's timesteps.

    With two masks a step, an agent reads the same batches.
    """
    tokens = 2 * problem.stream.batch_size * problem.stream.sequence_length
    return max(1, -(-timesteps * TOKENS_PER_TIMESTEP // tokens))


def stopwatch(problem: Problem) -> Callable[[int], dict[str, Any]]:
    """Starts to measure what learning costs.

    Returns:
        What makes the notes for results.json once the given number of steps is done: steps,
        tokens, seconds, and the process's peak memory in bytes.
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
