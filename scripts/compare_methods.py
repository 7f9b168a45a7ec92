r"""Compare pruning methods: methods x rates x models x seeds, as tables and the paper's figures.

    pgprune compare --methods wanda-sp flap reinforce --rates 0.3 0.5
    pgprune compare --methods all --models builtin DIR --calibration a.jsonl \
        --evaluation b.jsonl --output comparison
    pgprune compare --output comparison --report --into docs/results.md

Every cell is a run in the output directory, and its figures are lines of comparison.jsonl; what is
there is not measured again, so the command can be killed and repeated at any time. Besides the
methods of prune_baseline.py there are the agents of train_agent.py, such as reinforce. Options of
their commands may follow a name: reinforce:init=llm-pruner, random:granularity=layers,budget=units.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from pgprune.agents.registry import AGENTS
from pgprune.agents.training.settings import Settings
from pgprune.data.documents import calibration_documents, evaluation_documents
from pgprune.data.stream import DataConfig, check_sequence_length
from pgprune.errors import PruningError
from pgprune.evaluation.zero_shot import load_tasks
from pgprune.experiments.baseline import Baseline, BaselineSettings
from pgprune.experiments.method_cells import (
    ALL,
    Cell,
    ComparisonConfig,
    check_repairs,
    check_settings,
    parts,
    plan,
)
from pgprune.experiments.method_plots import plot_all
from pgprune.experiments.method_records import RECORDS, missing, read_records
from pgprune.experiments.method_report import report
from pgprune.experiments.method_runner import Task, measure
from pgprune.experiments.unattended import train
from pgprune.models.load import ModelConfig, check_model
from pgprune.repair.fit import REPAIRS
from pgprune.utils.command_line import ArgumentParser, from_arguments, given, run_command
from pgprune.utils.files import check_place
from pgprune.utils.jsonl import close_line
from pgprune.utils.markdown import check_page
from pgprune.utils.process_pool import progress_printer, run_tasks


def main() -> int:
    """Measures what is missing, then writes the tables and plots."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    arguments = make_parser().parse_args()
    config = from_arguments(ComparisonConfig, arguments)
    if config.into is not None:
        check_page(Path(config.into), config.marker)
    failed = 0
    if not config.report:
        tasks = todo(arguments, config)
        failed = run_tasks(tasks, measure_cell, config.at_a_time, progress_printer(len(tasks)))
    print(report(Path(config.output), config))
    plot_all(Path(config.output), config.at_rate)
    return 1 if failed else 0


def make_parser() -> ArgumentParser:
    """The options: lists of what is compared, and the settings of all cells."""
    parser = ArgumentParser(__doc__, main=("seeds", "calibration", "evaluation", "output"))

    def add(name: str, default: Sequence[object], text: str, kind: type = str) -> None:
        shown = " ".join(map(str, default))
        text = f"{text} (default: {shown})"
        parser.main_group.add_argument(
            name, nargs="+", default=default, type=kind, metavar="X", help=text
        )

    add("--methods", ["all"], f"methods and agents, each with options or without\n{', '.join(ALL)}")
    add("--rates", [0.2, 0.3, 0.4, 0.5], "prune rates", float)
    add("--models", ["builtin"], "builtin, hub ids or directories of models")
    known = ", ".join(["none", *REPAIRS])
    add("--repairs", ["none", "least-squares"], f"repairs of every cell's mask\n{known}")
    parser.add(ComparisonConfig)
    parser.add(DataConfig)
    return parser


def todo(arguments: argparse.Namespace, config: ComparisonConfig) -> list[Task]:
    """The cells that are not measured, after a check of everything that can be checked."""
    cells = plan(arguments.models, arguments.methods, arguments.rates, config)
    repairs = check_repairs(arguments.repairs)
    given_data, data = given(DataConfig, arguments), from_arguments(DataConfig, arguments)
    check_place(Path(config.output))
    for model in dict.fromkeys(arguments.models):
        model_config, _ = check_model(ModelConfig(model, config.device, config.dtype))
        check_sequence_length(model_config, data.sequence_length)
    calibration_documents(data.calibration)
    evaluation_documents(data.evaluation)
    if config.task_names:
        load_tasks(config.task_names, config.task_data)
    words = {cell: cell.words(config, given_data) for cell in cells}
    for cell in {(cell.method, cell.rate): cell for cell in cells}.values():
        try:
            settings_of(cell, words[cell])
        except PruningError as error:
            raise PruningError(f"method {cell.method!r}: {error}") from None
    check_settings(cells, config, data)
    close_line(Path(config.output) / RECORDS)
    lacking = missing(cells, read_records(Path(config.output)), repairs, config.retry)
    print(f"{len(cells)} cells, {len(cells) - len(lacking)} measured before", file=sys.stderr)
    shared = (config.output, config.task_names, config.task_data, config.limit)
    return [Task(cell, words[cell], repairs, *shared) for cell, repairs in lacking]


def settings_of(cell: Cell, words: Sequence[str]) -> Settings | BaselineSettings:
    """The settings of a cell's command.

    Raises:
        PruningError: an option is unknown, wrong, or does not fit the method.
    """
    settings = Settings if parts(cell.method)[0] in AGENTS else BaselineSettings
    parser = ArgumentParser(None)
    settings.add_to(parser)
    return settings.from_arguments(parser.parse_args(words))


def measure_cell(task: Task) -> None:
    """In a process of its own: measures a cell."""
    measure(task, prune)


def prune(task: Task) -> None:
    """Makes the run of a cell, or goes on with it: what its command does, without the talk."""
    settings = settings_of(task.cell, task.words)
    path = Path(str(settings.run.output))
    if isinstance(settings, BaselineSettings):
        if path.exists():  # killed while it was written, and made anew in no more time
            shutil.rmtree(path)
        command = ["python", "scripts/prune_baseline.py", *task.words]
        Baseline(settings, note=lambda line: None).run(command)
        return
    train(settings, ["python", "scripts/train_agent.py", *task.words])


if __name__ == "__main__":
    run_command(main)
