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
from collections.abc import Mapping
from pathlib import Path

from cells import GRID
from transformers.utils import logging

from pgprune.data.stream import DataConfig
from pgprune.experiments.agent_cells import BenchmarkCell, BenchmarkConfig, BenchmarkTask, plan
from pgprune.experiments.agent_runner import run
from pgprune.experiments.agent_scores import Scores, log_perplexity, read_records
from pgprune.experiments.cells import model_name
from pgprune.utils.command_line import ArgumentParser, from_arguments, given, run_command
from pgprune.utils.files import saving
from pgprune.utils.jsonl import Record
from pgprune.utils.markdown import check_page, grid, renew_page

FIRST = GRID[3:6]
GRID_RATE, RATES = 0.4, (0.3, 0.4, 0.5)
FULL = 3000
TINYSTORIES = "text/tinystories/tinystories_1000_clean.jsonl"
MARKER = "against"

_REPAIR = "repair=least-squares"
_REWARD = f"{_REPAIR},reward=repaired"
AUTO = {"a tenth": "auto:total-timesteps=250", "all": "auto"}
REPAIRED = {
    "a tenth": f"auto:total-timesteps=50,{_REWARD},reward-refit=3",
    "all": f"auto:total-timesteps=2640,{_REWARD}",
}
"""The recommended agent by its share of tokens; for repaired masks, rewarded as such.

Looks at the validation batch, moments for the rewards and the repair of a second mask cost tokens,
too, so that a tenth of them allows fewer evaluations than 300, and all of them fewer than 3,000.
"""

ROUNDS = {
    "tenth": [AUTO["a tenth"], REPAIRED["a tenth"]],
    "all": [AUTO["all"]],
    "steps": [],
    "all-repaired": [REPAIRED["all"]],
}
"""What is measured together, beside the paper's agent; ``steps`` are its own around the best."""


def main() -> int:
    """Chooses the step sizes, measures what is missing, and makes the tables."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    arguments = make_parser().parse_args()
    config = from_arguments(BenchmarkConfig, arguments)
    page = None if config.into is None else Path(config.into)
    if page is not None:
        check_page(page, MARKER)
    failed = 0
    if not config.report:
        stories = str(arguments.assets / TINYSTORIES)
        vars(arguments).setdefault("calibration", f"{stories}[:500]")
        vars(arguments).setdefault("evaluation", f"{stories}[500:1000]")
        data = from_arguments(DataConfig, arguments), given(DataConfig, arguments)
        models = [_place(model, arguments.assets) for model in arguments.models]
        while cells := open_grid(Scores(read_records(Path(config.output))), models, config):
            if run(cells, config, *data):
                return 1
        chosen = best_steps(Scores(read_records(Path(config.output))))
        failed = run(matches(chosen, models, config, arguments.only), config, *data)
    text = tables(Scores(read_records(Path(config.output))))
    if page is None:
        print(text)
    else:
        with saving(page, "free some space and repeat the command with --report"):
            renew_page(page, MARKER, text)
    return 1 if failed else 0


def make_parser() -> ArgumentParser:
    """The options of benchmark_agents.py with the models and evaluations of the comparison."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--assets", type=Path, default=Path(), help="folder with models and text")
    models = ["stories260K", "babyllama-361", "builtin"]
    parser.add_argument("--models", nargs="+", default=models, help="of the assets, and builtin")
    rounds = list(ROUNDS)
    parser.add_argument(
        "--only", choices=rounds, nargs="+", default=rounds, help="what is measured (everything)"
    )
    parser.add(BenchmarkConfig)
    parser.add(DataConfig)
    parser.set_defaults(output="against", seeds=3, total_timesteps=FULL)
    return parser


def reinforce(step: float) -> str:
    """The paper's agent with a step size."""
    return f"reinforce:learning-rate={step:g},{_REPAIR}"


def open_grid(scores: Scores, models: list[str], config: BenchmarkConfig) -> list[BenchmarkCell]:
    """The cells of the grid that are to be measured next; none once each best has neighbours."""
    agents_tasks = []
    for model in models:
        task = f"{model}:{GRID_RATE:g}"
        losses = step_losses(scores, BenchmarkTask.parse(task).name)
        wanted = set(FIRST)
        if wanted <= losses.keys():
            wanted = set(around(min(losses, key=lambda step: losses[step])))
        agents_tasks += [(reinforce(step), task) for step in sorted(wanted - losses.keys())]
    seeds = config.all_seeds[:1]
    return [
        cell
        for agent, task in agents_tasks
        for cell in plan([agent], [task], seeds, reference=False)
    ]


def around(step: float) -> tuple[float, ...]:
    """A step of the grid with its neighbours."""
    at = GRID.index(step)
    return GRID[max(0, at - 1) : at + 2]


def step_losses(scores: Scores, task: str) -> dict[float, float]:
    """The loss of the answer on calibration text by step size, of the first seed."""
    found = {}
    for step in GRID:
        runs = scores.runs(reinforce(step), task)
        if runs:
            found[step] = runs[min(runs)]["curve"][-1]["loss"]
    return found


def best_steps(scores: Scores) -> dict[str, float]:
    """The step size of each model with the lowest loss on calibration text."""
    losses = {task: step_losses(scores, task) for task in scores.tasks}
    return {
        task.removesuffix(f":{GRID_RATE:g}"): min(found, key=lambda step: found[step])
        for task, found in losses.items()
        if task.endswith(f":{GRID_RATE:g}") and found
    }


def mean_losses(scores: Scores, task: str) -> dict[float, float]:
    """The mean loss on calibration text by step size, of the steps with the most seeds."""
    runs = {step: scores.runs(reinforce(step), task) for step in GRID}
    seeds = max(len(found) for found in runs.values())
    return {
        step: statistics.fmean(run["curve"][-1]["loss"] for run in found.values())
        for step, found in runs.items()
        if found and len(found) == seeds
    }


def cell_steps(scores: Scores) -> dict[str, float]:
    """The step size of each task with the lowest mean loss on calibration text.

    Tasks of models without a chosen step are left out.
    """
    found, models = {}, best_steps(scores)
    for task in scores.tasks:
        losses = mean_losses(scores, task)
        if losses and task.rpartition(":")[0] in models:
            found[task] = min(losses, key=lambda step: losses[step])
    return found


def matches(
    steps: Mapping[str, float], models: list[str], config: BenchmarkConfig, only: list[str]
) -> list[BenchmarkCell]:
    """The cells of some rounds, all models of a round before the next one."""
    cells = []
    for name in only:
        for model in models:
            best = steps[model_name(model)]
            others = [reinforce(step) for step in (around(best) if name == "steps" else [best])]
            tasks = [f"{model}:{rate:g}" for rate in RATES]
            cells += plan([*ROUNDS[name], *others], tasks, config.all_seeds, reference=False)
    return list(dict.fromkeys(cells))


def tables(scores: Scores) -> str:
    """The step sizes, and both agents before and after repair."""
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
    """Perplexities by task, and the paired differences in log-perplexity with their intervals."""
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
    """The difference of two agents with its interval, and the share of tokens beyond the start.

    The start is the other agent's, with its first look at the validation batch: what one spends on
    its own start beyond that, as on moments for its rewards, counts.
    """
    if not (pair := scores.differences(one, other, column).get(task)):
        return ["–", "–"]
    found, pairs = pair
    interval = f" [{found.low:+.3f}, {found.high:+.3f}]" if pairs > 1 else ""
    own, others = (scores.runs(agent, task).values() for agent in (one, other))
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
    """Tokens up to the last look at the validation batch, and of repairs if they count."""
    end = run["curve"][-1] if column == "masked" else run
    return float(end["tokens"])


def _place(model: str, assets: Path) -> str:
    return model if model == "builtin" else str(assets / "models" / model)


if __name__ == "__main__":
    run_command(main)
