"""Checks before cells are measured: models, texts, options, and settings of earlier commands."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pgprune.agents.training.factory import check_action, check_agent
from pgprune.agents.training.settings import Settings
from pgprune.data.documents import calibration_parts, evaluation_documents
from pgprune.data.stream import DataConfig, check_sequence_length
from pgprune.errors import PruningError
from pgprune.evaluation.zero_shot import load_tasks
from pgprune.experiments.baseline import BaselineSettings
from pgprune.experiments.cells import Cell, CellsConfig, model_name, place_of, text_of
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig, check_model
from pgprune.models.shapes import LayerShape, shapes_of
from pgprune.utils.command_line import ArgumentParser
from pgprune.utils.files import check_place, read_text, saving, write_file
from pgprune.utils.jsonl import parse_json

Words = Mapping[Cell, Sequence[str]]
"""The options of the command of each cell."""


def check_cells(words: Words, config: CellsConfig, data: DataConfig) -> None:
    """Checks everything that can be checked before long work, and notes the settings.

    Args:
        words: of all cells.
        config: settings that all cells share.
        data: the text.

    Raises:
        PruningError: something cannot work, or the output directory holds other settings.
    """
    check_place(Path(config.output))
    _check_own(Path(config.output), config)
    text = asdict(data.absolute())  # a file of the same name in another folder is another text
    # Shapes come from config.json alone, so no weights are loaded before everything is checked.
    shapes = dict[str, list[LayerShape]]()
    for model in dict.fromkeys(cell.model for cell in words):
        model_config, _ = check_model(ModelConfig(model, config.device, config.dtype))
        check_sequence_length(model_config, data.longest)
        shapes[model] = shapes_of(model_config)
    calibration_parts(data.calibration)
    evaluation_documents(data.evaluation)
    if config.zero_shot.names:
        load_tasks(config.zero_shot.names, config.zero_shot.folder)
    # Options are parsed once for each method and task: seeds cannot make them wrong.
    for method in dict.fromkeys(cell.method for cell in words):
        some = {cell.task: cell for cell in words if cell.method == method}
        _check_fit({cell: words[cell] for cell in some.values()}, shapes, config.kind)
    sections = {
        model_name(cell.model): {"model": place_of(cell.model), **text_of(cell.model, text)}
        for cell in words
    }
    options = {f"{cell.method} on {cell.task}": config.options_of(cell) for cell in words}
    check_same(Path(config.output) / "settings.json", config.shared, sections | options)


def _check_own(folder: Path, config: CellsConfig) -> None:
    """Refuses a directory with other things, such as a run, or records without their settings."""
    own = {"settings.json", config.records.name}
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    if any(not name.startswith(".") for name in names) and not own & names:
        raise PruningError(
            f"{folder} holds other things than a {config.records.stem}; choose another --output"
        )
    if config.records.exists() and not (folder / "settings.json").exists():
        raise PruningError(
            f"{folder / 'settings.json'} is gone, so nothing says what the records were measured "
            "with; restore it from a copy, or choose another --output"
        )


def settings_of(cell: Cell, words: Sequence[str]) -> Settings | BaselineSettings:
    """Returns the settings that the options of a cell's command mean.

    Raises:
        PruningError: an option is unknown, wrong, or does not fit the method.
    """
    settings = Settings if cell.script == "train_agent" else BaselineSettings
    parser = ArgumentParser(None)
    settings.add_to(parser)
    return settings.from_arguments(parser.parse_args(words))


def _check_fit(words: Words, shapes: Mapping[str, list[LayerShape]], kind: str) -> None:
    """Checks the options of one method on its tasks, and that an agent fits one task at least.

    Raises:
        PruningError: an option is wrong, or the agent fits none of the tasks.
    """
    misfits = list[str]()
    for cell, options in words.items():
        try:
            settings = settings_of(cell, options)
        except PruningError as error:
            raise PruningError(f"{kind} {cell.method!r}: {error}") from None
        if isinstance(settings, BaselineSettings):
            return
        try:
            check_agent(settings)
            pruning = settings.pruning
            units = PruningUnits(shapes[cell.model], pruning.granularity, pruning.channel_block)
            check_action(settings, units)
        except PruningError as error:
            # An agent that fits some tasks is measured there and has an error elsewhere.
            misfits.append(str(error))
    if len(misfits) == len(words):
        raise PruningError(f"{kind} {next(iter(words)).method!r} fits no task: {misfits[0]}")


def check_same(
    path: Path, settings: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]
) -> None:
    """Checks that cells measured later have the settings of those measured before.

    Args:
        path: the JSON file of the settings; what it lacks is added.
        settings: plain values that all cells share.
        sections: plain values of each model, and of each method on a task.

    Raises:
        PruningError: a setting was another one, or the file cannot be read or written.
    """
    known = _known(path)
    shared = {name: value for name, value in known.items() if not isinstance(value, dict)}
    # Sections are compared where both have them: a directory may grow by models and methods.
    pairs = [(shared, settings)] if known else []
    pairs += [(known[name], values) for name, values in sections.items() if name in known]
    for before, now in pairs:
        for name in {**now, **before}:
            if before.get(name) != now.get(name):
                raise PruningError(
                    f"{path.parent} was measured with {name} {before.get(name)!r}, not "
                    f"{now.get(name)!r}; repeat it with the same, or choose another --output"
                )
    wanted = {**known, **settings, **sections}
    if wanted != known:
        with saving(path, " or choose another --output"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, (json.dumps(wanted, indent=2) + "\n").encode())


def _known(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(read_text(path))) if path.exists() else {}
    except (TypeError, ValueError) as error:
        raise PruningError(
            f"{path} does not hold settings ({error}); choose another --output"
        ) from error
