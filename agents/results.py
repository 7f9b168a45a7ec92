"""What a run reports: results.json, the plots, and what to do next."""

import shlex
from typing import Any

import torch

from pgprune.agents.record import Record
from pgprune.agents.reinforce import Reinforce
from pgprune.agents.settings import Settings
from pgprune.evaluation import bos_rule
from pgprune.plots import plot_kept_shares, plot_learning_curve
from pgprune.problem import Problem
from pgprune.run import Run
from pgprune.versions import versions


def summarise(
    settings: Settings, problem: Problem, record: Record, agent: Reinforce, completed: bool
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        settings: of the run.
        problem: the model, its units and the budget.
        record: perplexities, masks (``initial`` and ``masked``) and costs.
        agent: the agent, done.
        completed: whether it did all its steps.
    """
    units, lm = problem.units, problem.lm
    mask = record.masks["masked"]
    return {
        "model": settings.model.model,
        "agent": settings.agent.agent,
        "granularity": units.granularity,
        "budget": settings.pruning.budget,
        "scope": settings.pruning.scope,
        "prune_rate": {
            "requested": settings.pruning.prune_rate,
            "achieved": units.prune_rate(mask),
        },
        "parameters": {
            "dense": lm.parameters,
            "prunable": units.prunable,
            "initial": lm.parameters - units.pruned_parameters(record.masks["initial"]),
            "pruned": lm.parameters - units.pruned_parameters(mask),
        },
        "perplexity": {**record.perplexity, "pruned": record.perplexity["masked"]},
        "validation_loss": {"last": record.validation_loss, "best": record.best_loss},
        "evaluation": {
            "sequence_length": settings.data.sequence_length,
            "bos": bos_rule(problem.tokenizer),
        },
        "completed": completed,
        "mask_evaluations": agent.timesteps,
        "skipped": agent.skipped,
        "learning_rate": settings.learning_rate,
        "executor": lm.executor,
        "tokens": record.tokens,
        "seconds": record.seconds,
        "peak_memory_bytes": record.peak_memory,
        "memory_beyond_weights_bytes": record.beyond_weights,
        "seed": settings.run.seed,
        "versions": versions(),
    }


def plot(run: Run, problem: Problem, record: Record) -> None:
    """Writes plots/learning_curve.png and plots/kept_shares.png, where matplotlib is there."""
    masks = torch.stack([record.masks["masked"], record.masks["initial"]])
    learned, initial = problem.units.kept_shares(masks)
    plots = run.path / "plots"
    plot_learning_curve(run.path / "progress.csv", plots / "learning_curve.png")
    target = problem.budget.target_share
    plot_kept_shares(plots / "kept_shares.png", problem.units.groups, learned, initial, target)


def next_commands(results: dict[str, Any], run: Run) -> list[str]:
    """Commands worth typing after a run."""
    path = shlex.quote(str(run.path))
    if not results["completed"]:
        return [f"python scripts/train_agent.py --resume {path}"]
    higher = min(0.9, results["prune_rate"]["requested"] + 0.1)
    return [
        f"python scripts/export.py {path}    # the smaller model, for transformers",
        f"python scripts/train_agent.py --model {shlex.quote(results['model'])} "
        f"--prune-rate {higher:.2g}    # prune more",
        f"tensorboard --logdir {path}/tensorboard    # how it learned; pictures in {path}/plots",
    ]
