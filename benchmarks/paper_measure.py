"""Measures one cell, through the same functions that the commands use."""

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from paper_cells import DEFAULTS, settings_of, vary
from torch import Tensor
from variance import estimator_variances

from pgprune.agents import Auto, AutoConfig, Reinforce, ReinforceConfig
from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem, PruningConfig, make_problem
from pgprune.data.stream import DataConfig, evaluation_windows
from pgprune.envs import LLMPruningVectorEnv
from pgprune.experiments.cells import Cell
from pgprune.masking.perplexity import perplexity
from pgprune.metrics import METRICS, Importance
from pgprune.metrics.initialization import (
    PROGRESSIVE,
    initial_probabilities,
    metric_name,
    progressive_rates,
)
from pgprune.models.load import ModelConfig
from pgprune.utils.jsonl import Record, add_line

_MOST_ORACLE_MASKS = 64
_TINYSTORIES = "text/tinystories/tinystories_1000_clean.jsonl"


@dataclass(frozen=True)
class Prepared:
    """What cells that differ only in how they learn have in common.

    Attributes:
        problem: model, text and budget.
        sets: evaluation windows (N, T) by the name of the text.
        validation: calibration windows that no choice of a mask saw in this order, (N, T).
        importance: what the metric says.
        initial: keep probabilities at the start, (n,).
        stages: prune rates of progressive pruning, or None.
        figures: of the dense model, the one-shot mask (``metric``) and the rounded start.
    """

    problem: Problem
    sets: dict[str, Tensor]
    validation: Tensor
    importance: Importance
    initial: Tensor
    stages: list[float] | None
    figures: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """What one process does.

    Attributes:
        cell: to measure, with its learning rate resolved.
        assets: folder with ``models`` and ``text``.
        windows: evaluation windows of each text.
        records: the file of the records.
    """

    cell: Cell
    assets: Path
    windows: int
    records: Path

    def __str__(self) -> str:
        return str(self.cell)


def measure(work: Work) -> None:
    """Measures a cell and adds its record: the settings, and figures of the masks."""
    started = time.perf_counter()
    cell, settings = work.cell, settings_of(work.cell)
    learns = ("score", "baseline", "window", "learning_rate", "timesteps")
    # Cells that differ only in how they learn start alike, and share what is loaded.
    start = vary(cell, **{name: DEFAULTS[name] for name in learns})
    # Seconds of a cell include loading only where no cell before it has loaded the same.
    prepared = prepare(start, work.assets, work.windows)
    meter = prepared.problem.lm.meter
    before, learn_started = meter.tokens, time.perf_counter()
    found: Record
    if settings["task"] == "variance":
        found = estimator_variances(
            prepared.problem, prepared.initial, settings["timesteps"], cell.seed
        )
    else:
        mask = _learn(cell, prepared)
        found = {"learned_tokens": meter.tokens - before}
        found["learning_seconds"] = time.perf_counter() - learn_started
        found["masks"] = prepared.figures | {"learned": figures(prepared, mask)}
    found["seconds"] = time.perf_counter() - started
    record = {"cell": settings, "executor": prepared.problem.lm.executor} | found
    add_line(work.records, record)


@lru_cache(maxsize=2)
def prepare(cell: Cell, assets: Path, windows: int) -> Prepared:
    """Loads the model and text of a cell, and computes where learning starts.

    Args:
        cell: what to measure; how it learns does not matter here.
        assets: folder with ``models`` and ``text``.
        windows: evaluation windows of each text.
    """
    settings = settings_of(cell)
    scope, init, granularity = (settings[name] for name in ("scope", "init", "granularity"))
    problem = make_problem(
        ModelConfig(
            model=cell.model if cell.model == "builtin" else f"{assets}/models/{cell.model}"
        ),
        DataConfig(
            calibration=_source(settings["calibration"], assets),
            evaluation=_source(settings["evaluation"], assets),
            evaluation_windows=windows,
        ),
        PruningConfig(prune_rate=cell.rate, granularity=granularity, scope=scope),
        seed=cell.seed,
        masks_per_step=settings["masks"],
    )
    stages = progressive_rates(cell.rate) if init == PROGRESSIVE else None
    budget = problem.budget
    # Progressive pruning starts from the scores at its first, mildest prune rate.
    first = Budget(problem.units, stages[0], scope=scope) if stages else budget
    fine = "stream-error" if settings["agent"] == "auto" else "wanda-sp"
    metric = METRICS[metric_name(init, granularity, fine)]
    # 128 windows, as the commands' default; taking them leaves the stream at its start.
    importance = metric(problem.lm, problem.stream.head(128), first, cell.seed)
    initial = initial_probabilities(importance, first, settings["transform"])  # (n,)
    one_shot = importance.mask(budget)  # (n,)
    prepared = Prepared(
        problem,
        evaluation_windows(problem.data, problem.tokenizer),
        problem.validation,
        importance,
        initial,
        stages,
        {},
    )
    if settings["task"] == "learn":
        masks = {"dense": problem.units.ones(), "metric": one_shot, "start": budget.round(initial)}
        if granularity == "layers":
            masks |= oracle(prepared)
        for name, mask in masks.items():
            prepared.figures[name] = figures(prepared, mask)
    return prepared


def figures(prepared: Prepared, mask: Tensor) -> dict[str, Any]:
    """Measures perplexities, calibration loss and kept units of a mask (n,), for its record."""
    problem = prepared.problem
    units = problem.units
    # Heads and channels apart, as the paper's budget does.
    kept = torch.bincount(units.kind[mask.bool()], minlength=len(units.kinds)).tolist()
    return {
        "perplexity": {
            name: perplexity(problem.lm, mask, windows) for name, windows in prepared.sets.items()
        },
        "validation": _loss(prepared, mask),
        "parameters": units.kept_parameters(mask),
        "kept": dict(zip(units.kinds, kept, strict=True)),
    }


def oracle(prepared: Prepared) -> dict[str, Tensor]:
    """Finds the best mask of the budget by exhaustive search on the validation windows.

    Returns:
        The mask (n,) as ``oracle``, or nothing where there are too many masks.
    """
    units = prepared.problem.units
    # Whole layers cost the same, so all masks of the budget keep equally many.
    keep = int(prepared.problem.budget.round(units.ones()).sum())
    # C(n, kept) masks: few for the whole layers of a small model only.
    if math.comb(units.n, keep) > _MOST_ORACLE_MASKS:
        return {}
    masks = torch.zeros(math.comb(units.n, keep), units.n, dtype=torch.uint8)  # (C(n, kept), n)
    for mask, kept in zip(masks, combinations(range(units.n), keep), strict=True):
        mask[list(kept)] = 1
    losses = [_loss(prepared, mask) for mask in masks]
    return {"oracle": masks[losses.index(min(losses))]}


def _learn(cell: Cell, prepared: Prepared) -> Tensor:
    """Returns the mask that the agent learns, (n,) uint8."""
    own = settings_of(cell)
    env = LLMPruningVectorEnv(own["masks"], problem=prepared.problem, seed=cell.seed)
    # auto starts from the metric's importance, reinforce from probabilities made of it.
    if own["agent"] == "auto":
        config = AutoConfig(population=own["masks"])
        return Auto(env, config, prepared.importance, cell.seed).learn(own["timesteps"]).mask()
    names = ("window", "learning_rate", "score", "baseline")
    chosen = {name: own[name] for name in names}
    settings = ReinforceConfig(masks_per_step=own["masks"], **chosen)
    agent = Reinforce(
        env, settings, initial=prepared.initial, prune_rates=prepared.stages, seed=cell.seed
    )
    return agent.learn(own["timesteps"]).mask()


def _loss(prepared: Prepared, mask: Tensor) -> float:
    """Computes the mean loss on the validation windows, in nats a token."""
    # Perplexity is the exponential of the mean loss.
    return math.log(perplexity(prepared.problem.lm, mask, prepared.validation))  # type: ignore


def _source(text: str, assets: Path) -> str:
    return text.replace("tinystories", f"{assets}/{_TINYSTORIES}")
