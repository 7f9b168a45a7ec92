"""What tests of experiments share: the commands in this process, and records nobody measured."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pgprune.experiments.cells import RANDOM

ROOT = Path(__file__).parents[2]
FEW = ("--agents", "auto:population=4,init-samples=8", "random-search:candidates=4,init-samples=8")
AGENTS = {"auto": 0.9, "reinforce": 0.5, "ppo:action=density": 0.2}
TASKS = {"model:0.3": (5.0, 3.0), "model:0.5:layers": (8.0, 4.0)}  # random and best loss

Command = Callable[..., int]
"""Runs a command of an output directory and options in this process; returns its status."""


def load(path: Path) -> ModuleType:
    """A script as a module, which imports its neighbours."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def lines(output: Path) -> list[str]:
    """The lines of the records in an output directory."""
    (path,) = output.glob("*.jsonl")
    return path.read_text().splitlines()


def record(method: str, task: str, seed: int, losses: list[float], **more: Any) -> dict[str, Any]:
    """A record of an agent with these losses at its looks at the validation batch."""
    curve = [
        {"mask_evaluations": 50 * i, "seconds": 1.0 + i, "tokens": 1000 * i, "loss": loss}
        for i, loss in enumerate(losses)
    ]
    return {
        "method": method,
        "task": task,
        "seed": seed,
        "repair": "none",
        "hyperparameters": {"population": 10},
        "curve": curve,
        "perplexity": {"text": 10.0 + losses[-1], "code": 20.0},
        "dense": {"text": 5.0, "code": 6.0},
        "mask_evaluations": curve[-1]["mask_evaluations"],
        "seconds": 3.0,
        "tokens": 2000,
        "run": f"{task}/{method}/seed{seed}",
    } | more


def records(seeds: int = 3) -> list[dict[str, Any]]:
    """Agents whose scores are 0.9, 0.5, 0.2 and a bit for each seed; auto reaches 1 on its way."""
    found = []
    for task, (random, best) in TASKS.items():
        for seed in range(seeds):
            around = random + 0.1 * (seed - (seeds - 1) / 2)
            found.append(record(RANDOM, task, seed, [around, around - 0.5]))
            for agent, score in AGENTS.items():
                end = random - (score + 0.01 * seed) * (random - best)
                middle = best if agent == "auto" else (random + end) / 2
                found.append(record(agent, task, seed, [random, middle, end]))
    found.append(record("auto", "model:0.3", 0, [5.0, 3.0, 3.2]))
    found.append(record("auto", "model:0.5:layers", 0, [8.0, 4.0, 4.4]))
    return found
