r"""Compare agents: agents x tasks x seeds at equal numbers of mask evaluations.

    pgprune benchmark --agents auto reinforce ppo --tasks builtin:0.5 --seeds 3
    pgprune benchmark --agents all --tasks DIR:0.3 DIR:0.5:layers \
        --calibration a.jsonl --evaluation b.jsonl --output benchmark
    pgprune benchmark --output benchmark --report --into docs/benchmark/README.md

Every cell is a run in the output directory, and its figures are a line of benchmark.jsonl; what is
there is not measured again, so the command can be killed and repeated at any time. Options of
train_agent.py may follow an agent's name: ppo:action=density,ppo-clip=0.1.
"""

from pathlib import Path

from transformers.utils import logging

from pgprune.data.stream import DataConfig
from pgprune.experiments.agent_cells import BenchmarkConfig, plan
from pgprune.experiments.agent_report import MARKER, report
from pgprune.experiments.agent_runner import run
from pgprune.utils.command_line import ArgumentParser, from_arguments, given, run_command
from pgprune.utils.markdown import check_page


def main() -> int:
    """Measures what is missing, then writes the tables and plots."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    arguments = make_parser().parse_args()
    config = from_arguments(BenchmarkConfig, arguments)
    if config.into is not None:
        check_page(Path(config.into), MARKER)
    failed = 0
    if not config.report:
        cells = plan(arguments.agents, arguments.tasks, config.all_seeds)
        data = from_arguments(DataConfig, arguments)
        failed = run(cells, config, data, given(DataConfig, arguments))
    print(report(config))
    return 1 if failed else 0


def make_parser() -> ArgumentParser:
    """The options: lists of what is compared, and the settings of all cells."""
    parser = ArgumentParser(
        __doc__, main=("seeds", "total_timesteps", "calibration", "evaluation", "output")
    )
    group = parser.main_group
    group.add_argument(
        "--agents",
        nargs="+",
        default=["all"],
        metavar="X",
        help="agents of pgprune train, each with options or without (default: all)",
    )
    group.add_argument(
        "--tasks",
        nargs="+",
        default=["builtin:0.5"],
        metavar="X",
        help="MODEL:RATE or MODEL:RATE:GRANULARITY (default: builtin:0.5)",
    )
    parser.add(BenchmarkConfig)
    parser.add(DataConfig)
    return parser


if __name__ == "__main__":
    run_command(main)
