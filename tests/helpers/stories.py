"""A real model of 260 thousand parameters, and how good masks of it are."""

from pathlib import Path

import torch

from pgprune.budget.problem import Problem, PruningConfig, make_problem
from pgprune.data.stream import DataConfig, evaluation_windows
from pgprune.masking.perplexity import perplexity
from pgprune.metrics import METRICS
from pgprune.models.load import ModelConfig


def stories_problem(assets: Path) -> Problem:
    """40 % of stories260K, calibrated on stories."""
    text = str(assets / "text/tinystories/tinystories_1000_clean.jsonl")
    data = DataConfig(f"{text}[:800]", f"{text}[800:]", 64, 8, evaluation_windows=100)
    model = ModelConfig(str(assets / "models/stories260K"), device="cpu")
    return make_problem(model, data, PruningConfig(prune_rate=0.4))


def perplexities_beside(problem: Problem, mask: torch.Tensor) -> tuple[float, float, float]:
    """Of the mask, of Wanda-sp's and of a random one, on other stories."""
    windows = problem.stream.head(64)
    metrics = METRICS["wanda-sp"], METRICS["random"]
    budget = problem.budget
    others = [metric(problem.lm, windows, budget, 0).mask(budget) for metric in metrics]
    (evaluation,) = evaluation_windows(problem.data, problem.tokenizer).values()
    return tuple(perplexity(problem.lm, torch.stack([mask, *others]), evaluation))
