r"""Chooses the settings in experiments/benchmark_settings with six trials for every agent.

    python benchmarks/tune_agents.py --tasks DIR:0.4 --calibration a.jsonl --output tuning
    python benchmarks/tune_agents.py --output tuning --report --into docs/benchmark/tuning.md

What is tried stands under ``search`` in each agent's file. A trial is a cell of
scripts/benchmark_agents.py, whose records and runs are in the output directory; it can be killed
and repeated like that. Trials are judged by the loss on the validation batch, on seeds that the
benchmark does not have, and should be on a task that it does not have.
"""

from dataclasses import replace
from pathlib import Path

from transformers.utils import logging

from pgprune.agents.registry import AGENTS
from pgprune.data.stream import DataConfig
from pgprune.errors import PruningError
from pgprune.experiments.agent_cells import BenchmarkConfig, agent_options, plan
from pgprune.experiments.agent_runner import run
from pgprune.experiments.agent_scores import Scores, read_records
from pgprune.experiments.hyperparameters import BENCHMARK_SETTINGS, read_hyperparameters
from pgprune.utils.command_line import ArgumentParser, from_arguments, given, run_command
from pgprune.utils.files import saving
from pgprune.utils.markdown import check_page, grid, renew_page, spread

FIRST_SEED = 100  # the benchmark's begin at 0
TRIALS = 6  # of each agent
MARKER = "tuning"


def main() -> int:
    """Measures the trials that are not measured, then writes the table and prints the choice."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    arguments = make_parser().parse_args()
    config = replace(from_arguments(BenchmarkConfig, arguments), first_seed=FIRST_SEED)
    if config.into is not None:
        check_page(Path(config.into), MARKER)
    failed = 0
    if not config.report:
        directory = (
            BENCHMARK_SETTINGS if config.hyperparameters is None else Path(config.hyperparameters)
        )
        named = [one for agent in arguments.agents for one in trials(agent, directory)]
        cells = plan(named, arguments.tasks, config.all_seeds, reference=False)
        data = from_arguments(DataConfig, arguments)
        failed = run(cells, config, data, given(DataConfig, arguments))
    scores = Scores(read_records(Path(config.output)))
    text = table(scores)
    if config.into is None:
        print(text)
    else:
        with saving(Path(config.into), "free some space and repeat the command with --report"):
            renew_page(Path(config.into), MARKER, text)
    for agent in best(scores).values():
        print(yaml_of(agent))
    return 1 if failed else 0


def make_parser() -> ArgumentParser:
    """The options of benchmark_agents.py, with fewer seeds."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), metavar="X", help="(all)")
    parser.add_argument(
        "--tasks", nargs="+", default=["builtin:0.4"], metavar="X", help="(builtin:0.4)"
    )
    parser.add(BenchmarkConfig)
    parser.add(DataConfig)
    parser.set_defaults(output="tuning", seeds=2)
    return parser


def trials(agent: str, directory: Path) -> list[str]:
    """An agent with each combination of its options to try, as ``ppo:ppo-clip=0.1``.

    Raises:
        PruningError: there is no such agent, or its file has more or fewer trials than others.
    """
    agent_options(agent)
    every = read_hyperparameters(agent, directory).trials()
    if len(every) != TRIALS:
        raise PruningError(
            f"the search of {directory / agent}.yaml has {len(every)} combinations; every agent "
            f"gets {TRIALS}"
        )
    return [
        f"{agent}:" + ",".join(f"{name.replace('_', '-')}={value}" for name, value in one.items())
        for one in every
    ]


def best(scores: Scores) -> dict[str, str]:
    """The trial with the lowest mean loss of each agent, by agent."""
    found: dict[str, str] = {}
    for agent in sorted(scores.agents, key=lambda one: mean(scores, one)):
        found.setdefault(agent.partition(":")[0], agent)
    return found


def mean(scores: Scores, agent: str) -> float:
    """The mean loss of a trial over tasks and seeds; infinite where a task failed."""
    losses = [scores.losses(agent, task) for task in scores.tasks]
    if not all(losses):
        return float("inf")
    return sum(sum(each) / len(each) for each in losses) / len(losses)


def table(scores: Scores) -> str:
    """All trials by loss, under each agent's name, the chosen one bold."""
    chosen, lines = best(scores), []
    for name in sorted(chosen):
        own = [agent for agent in scores.agents if agent.partition(":")[0] == name]
        for agent in sorted(own, key=lambda one: mean(scores, one)):
            mark = "**" if agent == chosen[name] else ""
            losses = [spread(scores.losses(agent, task)) for task in scores.tasks]
            lines.append([name, f"{mark}{agent.partition(':')[2]}{mark}", *losses])
    return grid(["agent", "options", *scores.tasks], lines)


def yaml_of(agent: str) -> str:
    """What belongs into an agent's file."""
    name, _, options = agent.partition(":")
    lines = [f"  {option.replace('=', ': ')}" for option in options.split(",")]
    return "\n".join([f"# {name}.yaml", "default:", *lines])


if __name__ == "__main__":
    run_command(main)
