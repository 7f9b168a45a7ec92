"""What cells of a comparison or benchmark have in common: names, options and shared settings."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgprune.errors import PruningError
from pgprune.models.load import ModelConfig
from pgprune.utils.devices import side_by_side
from pgprune.utils.files import read_text, saving, write_file
from pgprune.utils.options import Config, option, same_option

_MOST_WORKERS = 8  # each loads a model


@dataclass(frozen=True)
class CellsConfig(Config):
    """Cells: how they are measured, and what is made of them."""

    workers: int | None = option(
        None,
        "cells measured at a time, each on one CPU thread and at most one GPU",
        minimum=1,
        unset="one per GPU, else one per CPU core, at most 8",
    )
    retry: bool = option(False, "measure again the cells that failed with an error")
    report: bool = option(False, "measure nothing, only write the tables and plots")
    device: str = same_option(ModelConfig, "device", "auto")
    dtype: str = same_option(ModelConfig, "dtype", "auto")

    @property
    def at_a_time(self) -> int:
        """How many cells are measured side by side."""
        return self.workers or min(_MOST_WORKERS, side_by_side(self.device))


def model_name(model: str) -> str:
    """What tables and directories call a model: ``builtin``, a hub id or a directory."""
    path = Path(model)
    return path.resolve().name if path.exists() else model.replace("/", "-")


def place_of(model: str) -> str:
    """Where a model is, which tells it from another one of its name."""
    path = Path(model)
    return str(path.resolve()) if path.exists() else model


def check_names(models: Iterable[str]) -> None:
    """Makes sure that models have names of their own.

    Raises:
        PruningError: two models of one name.
    """
    for name, count in Counter(map(model_name, dict.fromkeys(models))).items():
        if count > 1:
            raise PruningError(
                f"{count} models are called {name!r}, and so would their runs; rename a directory"
            )


def named_options(
    text: str, kind: str, names: Collection[str], taken: Sequence[str]
) -> tuple[str, dict[str, str]]:
    """A name and the options that follow it: ``name:option=value,option=value``.

    Args:
        text: as it was typed.
        kind: what is named, for the errors.
        names: the known ones.
        taken: options, by field, that may not follow.

    Raises:
        PruningError: the name is unknown, or something that follows is not an option.
    """
    name, _, rest = text.partition(":")
    if name not in names:
        raise PruningError(f"{kind} {name!r} is unknown; choose all, or one of {', '.join(names)}")
    options = dict[str, str]()
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            raise PruningError(
                f"{item!r} in {kind} {text!r} is not an option and its value; write "
                f"{name}:option=value"
            )
        options[key.replace("-", "_")] = value
    if ours := [key for key in options if key in taken]:
        raise PruningError(
            f"{ours[0]} in {kind} {text!r} is the comparison's to choose; leave it out there"
        )
    return name, options


def words(options: Mapping[str, object]) -> list[str]:
    """Options by field as they are typed; one that is on or off has a name for each."""
    return [_word(name.replace("_", "-"), value) for name, value in options.items()]


def check_same(path: Path, settings: Mapping[str, Any]) -> None:
    """Makes sure that what is measured later has the settings of what was measured before.

    Args:
        path: the JSON file of the settings, written if it is not there.
        settings: plain values.

    Raises:
        PruningError: a setting was another one, or the file cannot be written.
    """
    if path.exists():
        try:
            before = dict(json.loads(read_text(path)))
        except (TypeError, ValueError) as error:
            raise PruningError(
                f"{path} does not hold settings ({error}); choose another --output"
            ) from error
        for name in {**settings, **before}:
            if before.get(name) != settings.get(name):
                raise PruningError(
                    f"{path.parent} was measured with {name} {before.get(name)!r}, not "
                    f"{settings.get(name)!r}; go on with the same, or choose another --output"
                )
        return
    with saving(path, "choose another --output"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, (json.dumps(settings, indent=2) + "\n").encode())


def _word(option: str, value: object) -> str:
    switches = {"on": f"--{option}", "off": f"--no-{option}"}
    return switches.get(str(value), f"--{option}={value}")
