"""Measures the cells of a benchmark of agents, each as a run in a process of its own."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pgprune.agents.training.factory import check_action, check_agent
from pgprune.agents.training.settings import Settings
from pgprune.data.documents import calibration_documents, evaluation_documents
from pgprune.data.stream import DataConfig, check_sequence_length
from pgprune.errors import PruningError
from pgprune.experiments.agent_cells import (
    RANDOM,
    BenchmarkCell,
    BenchmarkConfig,
    agent_options,
    text_of,
)
from pgprune.experiments.agent_scores import RECORDS, read_records, record_key
from pgprune.experiments.cells import check_same, place_of
from pgprune.experiments.hyperparameters import BENCHMARK_SETTINGS, read_hyperparameters
from pgprune.experiments.unattended import train
from pgprune.masking.units import LayerShape, PruningUnits, shapes_of
from pgprune.models.load import ModelConfig, check_model
from pgprune.runs.finished import FinishedRun
from pgprune.runs.run import Run
from pgprune.utils.command_line import ArgumentParser
from pgprune.utils.devices import choose_device
from pgprune.utils.files import check_place
from pgprune.utils.jsonl import Record, add_line, close_line
from pgprune.utils.process_pool import progress_printer, run_tasks


@dataclass(frozen=True)
class Work:
    """What one process does.

    Attributes:
        cell: to measure.
        words: options of the cell's command.
        hyperparameters: those of the agent among them, by field.
        output: the benchmark's directory.
    """

    cell: BenchmarkCell
    words: list[str]
    hyperparameters: dict[str, Any]
    output: str

    def __str__(self) -> str:
        return str(self.cell)


def run(
    cells: Sequence[BenchmarkCell],
    config: BenchmarkConfig,
    data: DataConfig,
    given: Mapping[str, Any],
) -> int:
    """Measures the cells that are not measured, and says how it goes.

    Args:
        cells: of the benchmark.
        config: of the benchmark.
        data: the text.
        given: what was asked of it, by field.

    Returns:
        How many of them have no figures.

    Raises:
        PruningError: anything that cannot work, before any long work.
    """
    tasks = missing(cells, config, data, given)
    print(f"{len(cells)} cells, {len(cells) - len(tasks)} measured before", file=sys.stderr)
    crashed = run_tasks(tasks, measure, config.at_a_time, progress_printer(len(tasks)))
    asked = {cell.key for cell in cells}
    records = [one for one in read_records(Path(config.output)) if record_key(one) in asked]
    return crashed + sum("error" in one for one in records)


def missing(
    cells: Sequence[BenchmarkCell],
    config: BenchmarkConfig,
    data: DataConfig,
    given: Mapping[str, Any],
) -> list[Work]:
    """The work that is left, after a check of everything that can be checked; as ``run``."""
    output = Path(config.output)
    check_place(output)
    directory = (
        BENCHMARK_SETTINGS if config.hyperparameters is None else Path(config.hyperparameters)
    )
    work = [_work(cell, config, given, directory) for cell in cells]
    shapes = dict[str, list[LayerShape]]()
    for model in dict.fromkeys(cell.task.model for cell in cells):
        model_config, _ = check_model(ModelConfig(model, config.device, config.dtype))
        check_sequence_length(model_config, data.sequence_length)
        shapes[model] = shapes_of(model_config)
    calibration_documents(data.calibration)
    evaluation_documents(data.evaluation)
    for agent in dict.fromkeys(cell.agent for cell in cells):
        _check_fit([one for one in work if one.cell.agent == agent], shapes)
    shared = {"total_timesteps": config.total_timesteps, "dtype": config.dtype}
    shared["device"] = choose_device(config.device).type
    check_same(output / "settings.json", shared)
    for cell, own in {one.cell.folder: (one.cell, one.hyperparameters) for one in work}.values():
        about = {"model": place_of(cell.task.model), **text_of(cell.task.model, asdict(data))}
        check_same(output / cell.folder.parent / "settings.json", about)
        check_same(output / cell.folder / "settings.json", own)
    close_line(output / RECORDS)
    records = [one for one in read_records(output) if not (config.retry and "error" in one)]
    done = set(map(record_key, records))
    return [one for one in work if one.cell.key not in done]


def _check_fit(work: Sequence[Work], shapes: Mapping[str, list[LayerShape]]) -> None:
    """Makes sure that the options of an agent are right, and that it fits one task at least.

    Args:
        work: the agent's.
        shapes: of the layers, by model.

    Raises:
        PruningError: they are not, or it fits none.
    """
    agent, misfits = work[0].cell.agent, list[str]()
    tasks = {one.cell.task: one for one in work}
    for task, one in tasks.items():
        try:
            settings = settings_of(one.words)
        except PruningError as error:
            raise PruningError(f"agent {agent!r}: {error}") from None
        try:
            check_agent(settings)
            pruning = settings.pruning
            units = PruningUnits(shapes[task.model], pruning.granularity, pruning.channel_block)
            check_action(settings, units)
        except PruningError as error:
            misfits.append(str(error))
    if len(misfits) == len(tasks):
        raise PruningError(f"agent {agent!r} fits no task: {misfits[0]}")


def settings_of(words: Sequence[str]) -> Settings:
    """The settings that options of train_agent.py mean.

    Raises:
        PruningError: an option is unknown, wrong, or does not fit the agent.
    """
    parser = ArgumentParser(None)
    Settings.add_to(parser)
    return Settings.from_arguments(parser.parse_args(words))


def measure(work: Work) -> None:
    """Makes the run of a cell unless it is there, and adds a line to the records.

    Raises:
        PruningError: the records cannot be written.
    """
    output, cell = Path(work.output), work.cell
    about = {"agent": cell.agent, "task": cell.task.name, "seed": cell.seed}
    path = output / cell.path
    try:
        if not (path.exists() and Run.open(path).finished):
            train(settings_of(work.words), ["python", "scripts/train_agent.py", *work.words])
        found = _found(work, FinishedRun.open(path).results)
    except PruningError as error:
        found = {"error": " ".join(str(error).split())}
    add_line(output / RECORDS, about | found)


def _work(
    cell: BenchmarkCell, config: BenchmarkConfig, given: Mapping[str, Any], directory: Path
) -> Work:
    """The work of a cell; what follows an agent's name goes before its file."""
    name, options = agent_options(cell.agent)
    own: dict[str, Any] = {}
    if name != RANDOM:
        own = read_hyperparameters(name, directory).of(cell.task) | options
    return Work(cell, cell.words(config, given, own), own, config.output)


def _found(work: Work, results: Mapping[str, Any]) -> Record:
    """What a finished run says.

    Raises:
        PruningError: the loss of its answer is not a number.
    """
    curve = results["learning_curve"]
    if any(point["loss"] is None for point in curve):
        raise PruningError("the loss of the answer is not a finite number")
    return {
        "hyperparameters": work.hyperparameters,
        "curve": curve,
        "perplexity": results["perplexity"]["pruned"],
        "masked": results["perplexity"]["masked"],
        "dense": results["perplexity"]["dense"],
        "mask_evaluations": results["mask_evaluations"],
        **results["method_cost"],
        "run": work.cell.path.as_posix(),
    }
