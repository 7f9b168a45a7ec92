"""A run of a command that learns nothing, for the tests of runs."""

import math
from dataclasses import dataclass

import torch

from pgprune.runs.progress import read_progress
from pgprune.runs.run import Run


@dataclass(frozen=True)
class Toy:
    """Toy settings."""

    model: str = "builtin"
    rate: float = 0.4


def make(output=None, toy=Toy(), decided="masked"):  # noqa: B008 (frozen)
    configs = {"toy": toy, "decided": {"executor": decided}}
    return Run.create(output, configs, ["train.py", "--note", "two words"], "toy-seed0")


def tensors(value):
    return {"s": torch.full((5,), value, dtype=torch.float64), "rng": torch.tensor([1, 2]).byte()}


def train(run, steps):
    """Logs the steps and saves a checkpoint after them."""
    for step in steps:
        run.log(step, {"loss": 1 / step, "best": math.nan})
    run.save_checkpoint(tensors(float(steps[-1])), {"step": steps[-1], "baseline": 0.1})


def steps_of(run):
    return read_progress(run.path / "progress.csv")["step"]
