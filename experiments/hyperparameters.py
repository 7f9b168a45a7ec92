"""Hyperparameters in YAML for the benchmark of agents: ``benchmark_settings/AGENT.yaml``.

Its entries hold options of train_agent.py: ``default`` for every task, and what differs from it for
a granularity, or for a task as MODEL, MODEL:RATE or MODEL:RATE:GRANULARITY. The entry ``search``
holds lists of values instead, of which benchmarks/tune_agents.py tries all combinations.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from pgprune.agents.registry import AGENTS
from pgprune.errors import PruningError
from pgprune.experiments.cells import Cell, model_name
from pgprune.masking.units import GRANULARITIES
from pgprune.metrics.initialization import InitConfig
from pgprune.utils.files import read_text
from pgprune.utils.options import load_yaml

BENCHMARK_SETTINGS = Path(__file__).parent / "benchmark_settings"
DEFAULT, SEARCH = "default", "search"


@dataclass(frozen=True)
class Hyperparameters:
    """What a file says of an agent.

    Attributes:
        entries: options by field, by ``default`` or task.
        search: values to try, by field.
    """

    entries: Mapping[str, Mapping[str, Any]]
    search: Mapping[str, list[Any]]

    def of(self, cell: Cell) -> dict[str, Any]:
        """Returns the options for a cell's task by field; the narrower entry wins."""
        model, rate, granularity = model_name(cell.model), f"{cell.rate:g}", str(cell.granularity)
        names = [DEFAULT, granularity, model, f"{model}:{rate}", f"{model}:{rate}:{granularity}"]
        # From the widest to the narrowest entry: a later one overwrites.
        found: dict[str, Any] = {}
        for name in names:
            found |= self.entries.get(name, {})
        return found

    def trials(self) -> list[dict[str, Any]]:
        """Returns all combinations of the values to try."""
        values = product(*self.search.values())
        return [dict(zip(self.search, each, strict=True)) for each in values]


def read_hyperparameters(agent: str, directory: Path = BENCHMARK_SETTINGS) -> Hyperparameters:
    """Reads the hyperparameters of an agent.

    Args:
        agent: its name.
        directory: of the files; an agent without a file has its own defaults.

    Raises:
        PruningError: no such directory, a file that is not YAML, an unknown option or task, or
            a file of no agent.
    """
    if not directory.is_dir():
        raise PruningError(f"there is no directory {directory}; give one of AGENT.yaml files")
    for file in directory.glob("*.yaml"):
        if file.stem not in AGENTS:
            raise PruningError(f"{file} is of no agent; the agents are {', '.join(AGENTS)}")
    path = directory / f"{agent}.yaml"
    if not path.exists():
        return Hyperparameters({}, {})
    sections = load_yaml(read_text(path), str(path))
    entries = {
        _entry(str(name), path): {_field(str(key), agent, path): own for key, own in values.items()}
        for name, values in sections.items()
    }
    search = entries.pop(SEARCH, {})
    for name, values in search.items():
        if not isinstance(values, list) or not values:
            raise PruningError(f"{path}: {name} in {SEARCH} must be a list of values to try")
    return Hyperparameters(entries, search)


def is_rate(text: str) -> bool:
    """Tells whether a text is a number above 0 and below 1."""
    return bool(re.fullmatch(r"0?\.\d+", text)) and float(text) > 0


def _entry(name: str, path: Path) -> str:
    """Returns an entry's name: default, search, a granularity, or a task in standard form."""
    model, *rest = name.split(":")
    alone = (DEFAULT, SEARCH, *GRANULARITIES)
    if rest and is_rate(rest[0]):
        # .50 and 0.5 are one task.
        rest[0] = f"{float(rest[0]):g}"
    fits = not rest or (is_rate(rest[0]) and model not in alone)
    if not (model and fits and len(rest) < 3 and set(rest[1:]) <= set(GRANULARITIES)):
        raise PruningError(
            f"{path}: {name!r} is not {DEFAULT}, {SEARCH}, GRANULARITY, MODEL, MODEL:RATE or "
            "MODEL:RATE:GRANULARITY"
        )
    return ":".join([model, *rest])


def _field(key: str, agent: str, path: Path) -> str:
    """Returns the field of an option of the agent or of where it starts."""
    # Only the agent's own options may differ; the task and the budget are equal for all.
    name, known = key.replace("-", "_"), [*_names(agent), "action"]
    if name not in known:
        options = ", ".join(each.replace("_", "-") for each in known)
        raise PruningError(f"{path}: {key!r} is no option of agent {agent}, which has {options}")
    return name


def _names(agent: str) -> Iterable[str]:
    configs = (AGENTS[agent].config, InitConfig)
    return [each.name for config in configs for each in fields(config)]
