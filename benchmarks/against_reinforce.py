r"""Holds the recommended agent against the paper's, with a tenth of the evaluations and with all.

    python benchmarks/against_reinforce.py --assets ASSETS --output DIR
    python benchmarks/against_reinforce.py --output DIR --report --into docs/auto.md

The paper's agent has 3,000 evaluations and, for each model, the step size of a grid that ends with
the lowest loss on calibration text (the validation batch; rate 0.4, the first seed). The grid is
walked outwards from its middle as long as the best is at an edge. One seed may mislead, so the
round ``steps`` measures the steps around it at every rate with every seed, and each cell takes the
one with the lowest mean loss. Cells are those of scripts/benchmark_agents.py, and can be killed and
repeated like them.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paper_cells import GRID

from pgprune.experiments.cells import Cell, model_name
from pgprune.experiments.experiment import Experiment
from pgprune.experiments.plan import BenchmarkConfig, agent_cells
from pgprune.experiments.records import read_records
from pgprune.experiments.report import publish
from pgprune.experiments.scores import Scores, log_perplexity
from pgprune.utils.command_line import run_command
from pgprune.utils.jsonl import Record
from pgprune.utils.markdown import grid
from pgprune.utils.options import Config, option

FIRST = GRID[3:6]
GRID_RATE, RATES = 0.4, (0.3, 0.4, 0.5)
TINYSTORIES = "text/tinystories/tinystories_1000_clean.jsonl"

_REPAIR = "repair=least-squares"
_REWARD = f"{_REPAIR},reward=repaired"
AUTO = {"a tenth": "auto:total-timesteps=250", "all": "auto"}
REPAIRED = {
    "a tenth": f"auto:total-timesteps=50,{_REWARD},reward-refit=3",
    "all": f"auto:total-timesteps=2640,{_REWARD}",
    "levels": "auto:total-timesteps=400,reward=levels,loss=kl,repair-samples=1024",
}
"""The recommended agent by its share of tokens; for repaired masks, rewarded as such.

What it chooses by itself, levels, has the same units and budget as the others here.

Looks at the validation batch, moments for the rewards and the repair of a second mask cost tokens,
too, so that a tenth of them allows fewer evaluations than 300, and all of them fewer than 3,000.
"""

ROUNDS = {
    "tenth": [AUTO["a tenth"], REPAIRED["a tenth"]],
    "all": [AUTO["all"]],
    "steps": [],
    "all-repaired": [REPAIRED["all"]],
    "levels": [REPAIRED["levels"]],
}
"""What is measured together, beside the paper's agent; ``steps`` are its own around the best."""


@dataclass(frozen=True)
class RoundsConfig(Config):
    """What is compared: both agents on every model, in rounds."""

    assets: str = option(".", "folder with models and text")
    models: tuple[str, ...] = option(
        ("stories260K", "babyllama-361", "builtin"), "models of the assets, and builtin"
    )
    only: tuple[str, ...] = option(tuple(ROUNDS), "rounds that are measured", choices=list(ROUNDS))


@dataclass(frozen=True)
class AgainstConfig(BenchmarkConfig):
    """Comparison: how much is measured, where it goes and what is shown of it."""

    output: str = option("against", "directory of the runs and of benchmark.jsonl", metavar="DIR")
    seeds: int = option(3, "seeds of both agents", minimum=1)
    total_timesteps: int = option(3000, "mask evaluations of the paper's agent", minimum=1)
    marker: str = option("against", "--into: name of the place in the page")


def rounds(compared: RoundsConfig, config: AgainstConfig) -> Iterator[list[Cell]]:
    """Yields the cells of the grid of step sizes until it is whole, then those of the rounds."""
    models = [_place(model, compared.assets) for model in compared.models]
    while cells := open_grid(Scores(read_records(config.records)), models, config):
        yield cells
    steps = best_steps(Scores(read_records(config.records)))
    yield matches(steps, models, config, compared.only)


def stories(compared: RoundsConfig) -> dict[str, str]:
    """Returns the text of the assets: the first half calibrates, the second half evaluates."""
    text = Path(compared.assets) / TINYSTORIES
    return {"calibration": f"{text}[:500]", "evaluation": f"{text}[500:1000]"}


def report(config: AgainstConfig) -> str:
    """Writes the tables; returns what to print."""
    return publish(tables(Scores(read_records(config.records))), config)


def reinforce(step: float) -> str:
    """Returns the paper's agent with a step size."""
    return f"reinforce:learning-rate={step:g},{_REPAIR}"


def open_grid(scores: Scores, models: list[str], config: BenchmarkConfig) -> list[Cell]:
    """Returns the grid cells to measure next; none once each best step has both neighbours."""
    agents_tasks = []
    for model in models:
        task = f"{model}:{GRID_RATE:g}"
        losses = step_losses(scores, f"{model_name(model)}:{GRID_RATE:g}")
        # The walk ends: each round adds a neighbour of the best, and the grid is finite.
        wanted = set(FIRST)
        if wanted <= losses.keys():
            wanted = set(around(min(losses, key=lambda step: losses[step])))
        agents_tasks += [(reinforce(step), task) for step in sorted(wanted - losses.keys())]
    seeds = config.all_seeds[:1]
    return [
        cell
        for agent, task in agents_tasks
        for cell in agent_cells([agent], [task], seeds, reference=False)
    ]


def around(step: float) -> tuple[float, ...]:
    """Returns a step of the grid with its neighbours."""
    # At an end of the grid there is one neighbour only.
    at = GRID.index(step)
    return GRID[max(0, at - 1) : at + 2]


def step_losses(scores: Scores, task: str) -> dict[float, float]:
    """Reads the answer's loss on calibration text by step size, of the first seed."""
    found = {}
    for step in GRID:
        runs = scores.runs(reinforce(step), task)
        if runs:
            found[step] = runs[min(runs)]["curve"][-1]["loss"]
    return found


def best_steps(scores: Scores) -> dict[str, float]:
    """Chooses the step size of each model with the lowest loss on calibration text."""
    losses = {task: step_losses(scores, task) for task in scores.tasks}
    return {
        task.removesuffix(f":{GRID_RATE:g}"): min(found, key=lambda step: found[step])
        for task, found in losses.items()
        if task.endswith(f":{GRID_RATE:g}") and found
    }


def mean_losses(scores: Scores, task: str) -> dict[float, float]:
    """Computes the mean calibration loss by step size, of the steps with the most seeds."""
    runs = {step: scores.runs(reinforce(step), task) for step in GRID}
    # Steps with fewer seeds, as those of the grid's walk, have no comparable mean.
    seeds = max(len(found) for found in runs.values())
    return {
        step: statistics.fmean(run["curve"][-1]["loss"] for run in found.values())
        for step, found in runs.items()
        if found and len(found) == seeds
    }


def cell_steps(scores: Scores) -> dict[str, float]:
    """Chooses the step size of each task with the lowest mean loss on calibration text.

    Tasks of models without a chosen step are left out.
    """
    found, models = {}, best_steps(scores)
    for task in scores.tasks:
        losses = mean_losses(scores, task)
        if losses and task.rpartition(":")[0] in models:
            found[task] = min(losses, key=lambda step: losses[step])
    return found


def matches(
    steps: Mapping[str, float], models: list[str], config: BenchmarkConfig, only: Sequence[str]
) -> list[Cell]:
    """Returns the cells of some rounds, all models of a round before the next one."""
    cells = []
    for name in only:
        for model in models:
            best = steps[model_name(model)]
            others = [reinforce(step) for step in (around(best) if name == "steps" else [best])]
            tasks = [f"{model}:{rate:g}" for rate in RATES]
            cells += agent_cells([*ROUNDS[name], *others], tasks, config.all_seeds, reference=False)
    return list(dict.fromkeys(cells))


def tables(scores: Scores) -> str:
    """Writes the tables of the step sizes and of both agents before and after repair."""
    steps = cell_steps(scores)
    first = {task: step_losses(scores, task) for task in steps if task.endswith(f":{GRID_RATE:g}")}
    means = {task: mean_losses(scores, task) for task in steps}
    return (
        f"Loss of reinforce on calibration text by step size, first seed:\n\n{_step_table(first)}\n"
        f"Mean of all seeds, and the step of each cell:\n\n{_step_table(means)}\n"
        f"Perplexity before repair:\n\n{_match_table(scores, steps, AUTO, 'masked')}\n"
        f"Perplexity after repair (least squares; auto is rewarded for repaired masks):\n\n"
        f"{_match_table(scores, steps, REPAIRED, 'perplexity')}"
    )


def _step_table(losses: Mapping[str, Mapping[float, float]]) -> str:
    lines = []
    for task, found in losses.items():
        best = min(found, key=lambda step: found[step])
        lines.append([task, *(f"{found[step]:.3f}" if step in found else "–" for step in GRID)])
        lines[-1].append(f"{best:g}")
    return grid(["task", *(f"{step:g}" for step in GRID), "best"], lines)


def _match_table(
    scores: Scores, steps: Mapping[str, float], agents: Mapping[str, str], column: str
) -> str:
    """Tabulates perplexities and paired differences in log-perplexity by task."""
    lines = []
    for task, step in steps.items():
        other = reinforce(step)
        line = [task, _perplexity(scores.runs(other, task), column)]
        for agent in agents.values():
            own = _perplexity(scores.runs(agent, task), column)
            line += [own, *_versus(scores, agent, other, task, column)]
        lines.append(line)
    head = ["task", "reinforce, all"]
    for share in agents:
        head += [f"auto, {share}", "difference [95 %] (seeds)", "tokens"]
    return grid(head, lines)


def _versus(scores: Scores, one: str, other: str, task: str, column: str) -> list[str]:
    """Returns the difference of two agents with its interval, and the share of tokens spent.

    The tokens are those beyond the start of the other agent, its first evaluation of the validation
    batch included. Other preparation counts, such as moments for repaired rewards.
    """
    if not (pair := scores.differences(one, other, column).get(task)):
        return ["–", "–"]
    found, pairs = pair
    interval = f" [{found.low:+.3f}, {found.high:+.3f}]" if pairs > 1 else ""
    own, others = (scores.runs(agent, task).values() for agent in (one, other))
    # Both start from a metric; what agents choose to do beyond that is their cost.
    start = statistics.fmean(run["curve"][0]["tokens"] for run in others)
    spent, allowed = (
        statistics.fmean(_tokens(run, column) for run in runs) - start for runs in (own, others)
    )
    return [f"{found.value:+.3f}{interval} ({pairs})", f"{spent / allowed:.3f}"]


def _perplexity(runs: Mapping[int, Record], column: str) -> str:
    if not runs:
        return "–"
    return (
        f"{math.exp(statistics.fmean(log_perplexity(run, column) for run in runs.values())):,.2f}"
    )


def _tokens(run: Record, column: str) -> float:
    """Returns the tokens up to the last validation, and those of repairs if they count."""
    # Repairs come after the last look, and count where repaired masks are compared.
    end = run["curve"][-1] if column == "masked" else run
    return float(end["tokens"])


def _place(model: str, assets: str) -> str:
    return model if model == "builtin" else str(Path(assets) / "models" / model)


EXPERIMENT = Experiment(__doc__, RoundsConfig, AgainstConfig, rounds, report, stories)
main = EXPERIMENT.main

if __name__ == "__main__":
    run_command(main)
