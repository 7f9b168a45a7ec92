"""Writes what a run leaves: results.json, the plots, the export, and advice."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgprune.agents.base import Agent
from pgprune.agents.registry import AGENTS
from pgprune.agents.training.run_state import Record
from pgprune.agents.training.settings import Settings
from pgprune.budget.problem import Problem
from pgprune.errors import PruningError
from pgprune.export.export import ExportConfig, export
from pgprune.repair.choice import ChosenRepair
from pgprune.runs.files import RunFile
from pgprune.runs.finished import FinishedRun
from pgprune.runs.plots import plot_kept_shares, plot_learning_curve
from pgprune.runs.results import facts
from pgprune.runs.run import Run


def summarise(
    settings: Settings,
    problem: Problem,
    windows: Mapping[str, Tensor],
    record: Record,
    agent: Agent,
    completed: bool,
    chosen: ChosenRepair,
) -> dict[str, Any]:
    """Returns the content of results.json.

    Args:
        settings: of the run.
        problem: the model, its units and the budget.
        windows: evaluation windows (N, T) by the name of their set.
        record: perplexities, masks (``initial`` and ``masked``) and costs.
        agent: after its last step.
        completed: whether it did all its steps.
        chosen: what comes with the mask.
    """
    mask, initial = record.masks["masked"], record.masks["initial"]
    shared = facts(problem, settings.model.model, mask, windows, settings.run.seed, chosen.repair)
    dense = shared["parameters"]["dense"]
    return {
        "agent": settings.agent.agent,
        "reward": settings.reward,
        "loss": settings.agent.loss,
        **shared,
        "parameters": {
            **shared["parameters"],
            "initial": dense - problem.units.pruned_parameters(initial),
        },
        "repair": chosen.facts(),
        "perplexity": record.perplexity,
        "standard_error": record.standard_error,
        "validation_loss": {"last": record.validation_loss, "best": record.best_loss},
        "learning_curve": record.curve,
        "completed": completed,
        "mask_evaluations": agent.timesteps,
        "skipped": agent.skipped,
        "learning_rate": settings.learning_rate if settings.agent.agent == "reinforce" else None,
        "method_cost": record.cost(),
        "tokens": record.tokens,
        "seconds": record.seconds,
        "peak_memory_bytes": record.peak_memory,
        "memory_beyond_weights_bytes": record.beyond_weights,
    }


def plot(run: Run, problem: Problem, record: Record) -> None:
    """Writes plots/learning_curve.png and plots/kept_shares.png, if matplotlib is installed."""
    masks = torch.stack([record.masks["masked"], record.masks["initial"]])
    learned, initial = problem.units.kept_shares(masks)
    plots = run.path / RunFile.PLOTS
    plot_learning_curve(run.path / RunFile.PROGRESS, plots / "learning_curve.png")
    target = problem.budget.target_share
    plot_kept_shares(plots / "kept_shares.png", problem.units.groups, learned, initial, target)


def export_once(run: Run, format: str) -> Path:
    """Exports a run unless it has been done.

    Args:
        run: that has done all its steps.
        format: a key of ``FORMATS``.

    Returns:
        The directory, in the run.

    Raises:
        PruningError: it cannot be exported; the run is complete without the export.
    """
    try:
        directory = run.path / format
        if not directory.exists():  # it appears when it is complete
            export(FinishedRun.open(run.path), ExportConfig(format=format))
        return directory
    except PruningError as error:
        path = shlex.quote(str(run.path))
        raise PruningError(
            f"the run {path} is complete, but its export failed: {error}; try again by "
            f"--resume {path} --export {format}"
        ) from error


def next_commands(results: dict[str, Any], run: Run) -> list[str]:
    """Returns commands that are useful after a run."""
    path, model = shlex.quote(str(run.path)), shlex.quote(results["model"])
    if not results["completed"]:
        resume = f"pgprune train --resume {path}"
        return [] if AGENTS[results["agent"]].no_resume else [resume]
    agent = results["agent"]
    asked = run.sections.get("model", {}).get("family", "known")
    again = model if asked == "known" else f"{model} --family {asked}"
    if "experts" in results["granularity"]:  # the default is for models without
        again += f" --granularity {results['granularity']}"
    higher = min(0.9, results["prune_rate"]["requested"] + 0.1)
    compare = f"pgprune bench-inference {model} {path}    # how much faster it is"
    smaller = f"pgprune export {path}    # the smaller model, for transformers"
    return [
        compare if (run.path / "hf").exists() else smaller,
        f"pgprune train --agent {agent} --model {again} --prune-rate {higher:.2g}    # prune more",
        f"tensorboard --logdir {path}/tensorboard    # how it learned; pictures in {path}/plots",
    ]
