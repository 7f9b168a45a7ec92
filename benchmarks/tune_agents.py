r"""Chooses the settings in experiments/benchmark_settings with six trials for every agent.

    python benchmarks/tune_agents.py --tasks DIR:0.4 --calibration a.jsonl --output tuning
    python benchmarks/tune_agents.py --output tuning --report --into docs/benchmark/tuning.md

The values to try stand under ``search`` in each agent's file. A trial is a cell of
scripts/benchmark_agents.py, whose records and runs are in the output directory, and the command
can be killed and repeated like that one. Trials are judged by the loss on the validation batch, on
seeds that the benchmark does not have, and should be on a task that it does not have.
"""

from dataclasses import dataclass
from pathlib import Path

from pgprune.agents.registry import AGENTS
from pgprune.errors import PruningError
from pgprune.experiments.cells import Cell, check_method, parts
from pgprune.experiments.experiment import Experiment
from pgprune.experiments.hyperparameters import read_hyperparameters
from pgprune.experiments.plan import BenchmarkConfig, BenchmarkedConfig, agent_cells
from pgprune.experiments.records import read_records
from pgprune.experiments.report import publish
from pgprune.experiments.scores import Scores
from pgprune.utils.command_line import run_command
from pgprune.utils.markdown import grid, spread
from pgprune.utils.options import option

TRIALS = 6  # the same effort for every agent


@dataclass(frozen=True)
class TuningConfig(BenchmarkConfig):
    """Tuning: how much is measured, where it goes and what is shown of it."""

    output: str = option("tuning", "directory of the runs and of benchmark.jsonl", metavar="DIR")
    seeds: int = option(2, "seeds of every trial", minimum=1)
    first_seed: int = option(100, "the first of them; the benchmark's begin at 0", minimum=0)
    marker: str = option("tuning", "--into: name of the place in the page")


@dataclass(frozen=True)
class TunedConfig(BenchmarkedConfig):
    """What is tuned: every agent on every task."""

    tasks: tuple[str, ...] = option(("builtin:0.4",), "MODEL:RATE or MODEL:RATE:GRANULARITY")


def trial_cells(tuned: TunedConfig, config: TuningConfig) -> list[Cell]:
    """Returns the cells of all trials."""
    named = [name for one in tuned.agents for name in (AGENTS if one == "all" else [one])]
    agents = [trial for agent in named for trial in trials(agent, config.settings)]
    return agent_cells(agents, tuned.tasks, config.all_seeds, reference=False)


def trials(agent: str, directory: Path) -> list[str]:
    """Returns an agent with each combination of its options to try: ``ppo:ppo-clip=0.1``.

    Raises:
        PruningError: there is no such agent, or its file has more or fewer trials than others.
    """
    check_method(agent, AGENTS, "agent")
    combinations = read_hyperparameters(agent, directory).trials()
    # More trials find better settings by chance alone, so all agents get the same number.
    if len(combinations) != TRIALS:
        raise PruningError(
            f"the search of {directory / agent}.yaml has {len(combinations)} combinations; every "
            f"agent gets {TRIALS}"
        )
    return [
        f"{agent}:" + ",".join(f"{name.replace('_', '-')}={value}" for name, value in one.items())
        for one in combinations
    ]


def best(scores: Scores) -> dict[str, str]:
    """Returns the trial with the lowest mean loss of each agent, by agent."""
    found: dict[str, str] = {}
    for agent in sorted(scores.agents, key=lambda one: mean(scores, one)):
        found.setdefault(parts(agent)[0], agent)
    return found


def mean(scores: Scores, agent: str) -> float:
    """Returns the mean loss of a trial over tasks and seeds; infinite where a task failed."""
    losses = [scores.losses(agent, task) for task in scores.tasks]
    # A trial that fails somewhere must not win by its easier tasks.
    if not all(losses):
        return float("inf")
    return sum(sum(found) / len(found) for found in losses) / len(losses)


def table(scores: Scores) -> str:
    """Returns all trials by loss, under each agent's name, the chosen one bold."""
    chosen, lines = best(scores), []
    for name in sorted(chosen):
        trials = [agent for agent in scores.agents if parts(agent)[0] == name]
        for agent in sorted(trials, key=lambda one: mean(scores, one)):
            mark = "**" if agent == chosen[name] else ""
            losses = [spread(scores.losses(agent, task)) for task in scores.tasks]
            lines.append([name, f"{mark}{agent.partition(':')[2]}{mark}", *losses])
    return grid(["agent", "options", *scores.tasks], lines)


def report(config: TuningConfig) -> str:
    """Writes the table of all trials; returns what belongs into the agents' files."""
    scores = Scores(read_records(config.records))
    said = publish(table(scores), config)
    chosen = map(yaml_of, best(scores).values())
    return "\n".join([*([said] if config.into is None else []), *chosen])


def yaml_of(agent: str) -> str:
    """Returns what belongs into an agent's file."""
    name, _, options = agent.partition(":")
    lines = [f"  {option.replace('=', ': ')}" for option in options.split(",")]
    return "\n".join([f"# {name}.yaml", "default:", *lines])


EXPERIMENT = Experiment(
    __doc__,
    TunedConfig,
    TuningConfig,
    lambda tuned, config: [trial_cells(tuned, config)],
    report,
)
main = EXPERIMENT.main

if __name__ == "__main__":
    run_command(main)
