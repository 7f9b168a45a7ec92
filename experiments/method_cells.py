"""What a comparison of methods is made of: its settings, its cells, and the commands of these.

A cell is one method on one model at one rate under one seed. It is a run like any other, in
``DIR/MODEL/METHOD-RATE-seedN``, made by the command of the method.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pgprune.agents.registry import AGENTS
from pgprune.data.stream import DataConfig
from pgprune.errors import PruningError
from pgprune.evaluation.evaluate import EvaluationConfig
from pgprune.experiments.cells import (
    CellsConfig,
    check_names,
    check_same,
    model_name,
    named_options,
    place_of,
    words,
)
from pgprune.methods import METHODS
from pgprune.metrics import METRICS
from pgprune.repair.fit import REPAIRS
from pgprune.utils.options import option, same_option

ALL = (
    *METHODS,
    "auto",
    "auto:reward=repaired",
    "reinforce",
    "reinforce:init=llm-pruner",
    "reinforce:granularity=layers",
)
"""What ``--methods all`` stands for: all methods, the agents, and what the paper's is used for."""

_OURS = ("agent", "method", "model", "prune_rate", "seed", "output", "resume", "export")


@dataclass(frozen=True)
class ComparisonConfig(CellsConfig):
    """Comparison: how much is measured, where it goes and what is shown of it."""

    output: str = option(
        "comparison", "directory of the runs, comparison.jsonl, tables and plots", metavar="DIR"
    )
    seeds: int = option(
        3, "seeds of methods that draw at random; the others run with seed 0", minimum=1
    )
    seeds_for_all: bool = option(
        False, "run every method with all seeds (they shuffle the calibration windows)"
    )
    timesteps: int = option(
        2000,
        "evaluations of agents and methods that learn, each on 1,024 tokens",
        minimum=1,
    )
    into: str | None = option(
        None,
        "Markdown page whose section between the --marker comments is replaced",
        unset="print the tables",
        metavar="FILE",
    )
    marker: str = option("comparison", "--into: name of the section in the page")
    at_rate: float | None = option(
        None,
        "prune rate of the seconds, memory and Hamming distances shown",
        above=0,
        below=1,
        unset="0.3, or the nearest one that was measured",
    )
    tasks: tuple[str, ...] | None = same_option(EvaluationConfig, "tasks", None)
    task_data: str | None = same_option(EvaluationConfig, "task_data", None)
    limit: int | None = same_option(EvaluationConfig, "limit", None)

    @property
    def task_names(self) -> list[str]:
        """The zero-shot tasks to do."""
        return EvaluationConfig(tasks=self.tasks, task_data=self.task_data).task_names


@dataclass(frozen=True)
class Cell:
    """One method on one model at one rate under one seed.

    Attributes:
        model: ``builtin``, a hub id or a directory.
        method: a method's name, maybe with options of its command, as ``reinforce:init=random``.
        rate: share of the prunable parameters to remove.
        seed: of everything random.
    """

    model: str
    method: str
    rate: float
    seed: int

    @property
    def model_name(self) -> str:
        """What tables and directories call the model."""
        return model_name(self.model)

    @property
    def path(self) -> Path:
        """The run's directory in that of the comparison."""
        method = re.sub(r"[^\w.=+-]+", "-", self.method)
        return Path(self.model_name) / f"{method}-{self.rate:g}-seed{self.seed}"

    @property
    def key(self) -> tuple[str, str, float, int]:
        """What tells it from other cells in the records."""
        return self.model_name, self.method, self.rate, self.seed

    def __str__(self) -> str:
        return f"{self.model_name} {self.method} {self.rate:g} seed {self.seed}"

    def words(self, config: ComparisonConfig, data: Mapping[str, Any]) -> list[str]:
        """The options of its command, train_agent.py for the agent, else prune_baseline.py.

        Args:
            config: of the comparison.
            data: options for the text, by field; the built-in model has its own text.
        """
        name, own = parts(self.method)
        options: dict[str, Any] = {
            "agent" if name in AGENTS else "method": name,
            "model": self.model,
            "prune_rate": self.rate,
            "seed": self.seed,
            "output": Path(config.output) / self.path,
            "device": config.device,
            "dtype": config.dtype,
            **{name: value for name, value in data.items() if self.has(name)},
        }
        if name in AGENTS:
            options["total_timesteps"] = config.timesteps
        elif METHODS[name].learns:
            options["learning_timesteps"] = config.timesteps
        return [*words(options | own), "--quiet"]

    def has(self, option: str) -> bool:
        """Whether a text option is about this model; the built-in one has its own texts."""
        return self.model != "builtin" or option not in ("calibration", "evaluation")


def parts(method: str) -> tuple[str, dict[str, str]]:
    """A method's name and the options that follow it: ``name:option=value,option=value``.

    Raises:
        PruningError: the name is unknown, or something that follows is not an option.
    """
    return named_options(method, "method", (*AGENTS, *METHODS), _OURS)


def needs(method: str) -> str:
    """``backward`` for what back-propagates through the model, else ``forward``."""
    name, options = parts(method)
    scorer = METRICS.get(options.get("init", "")) if name in AGENTS else METHODS[name]
    return "backward" if scorer is not None and scorer.backward else "forward"


def is_random(method: str) -> bool:
    """Whether the seed changes a method's mask."""
    name, _ = parts(method)
    return name in AGENTS or METHODS[name].random


def plan(
    models: Sequence[str],
    methods: Sequence[str],
    rates: Sequence[float],
    config: ComparisonConfig,
) -> list[Cell]:
    """The cells of a comparison, each once; all of a seed come before the next seed.

    Raises:
        PruningError: an unknown method, a rate that is none, or two models of one name.
    """
    named = [name for method in methods for name in (ALL if method == "all" else (method,))]
    for rate in rates:
        if not 0 < rate < 1:
            raise PruningError(f"--rates must be numbers above 0 and below 1, not {rate:g}")
    cells = [
        Cell(model, method, rate, seed)
        for seed in range(config.seeds)
        for model in dict.fromkeys(models)
        for rate in rates
        for method in dict.fromkeys(named)
        if seed == 0 or config.seeds_for_all or is_random(method)
    ]
    check_names(models)
    return list(dict.fromkeys(cells))


def check_repairs(repairs: Sequence[str]) -> list[str]:
    """The repairs to measure beside each mask as its method leaves it.

    Raises:
        PruningError: one is unknown.
    """
    for how in repairs:
        if how != "none" and how not in REPAIRS:
            raise PruningError(
                f"repair {how!r} is unknown; choose of none, {', '.join(REPAIRS)} for --repairs"
            )
    return [how for how in dict.fromkeys(repairs) if how != "none"]


def check_settings(cells: Iterable[Cell], config: ComparisonConfig, data: DataConfig) -> None:
    """Makes sure that cells of a model are measured under equal settings, also in later commands.

    Raises:
        PruningError: the directory holds cells of other settings, or cannot be written.
    """
    for cell in {cell.model: cell for cell in cells}.values():
        text = {name: value for name, value in asdict(data).items() if cell.has(name)}
        shared = {name: getattr(config, name) for name in ("timesteps", "dtype", "limit")}
        place = {"model": place_of(cell.model)}
        settings = {**place, **text, **shared, "tasks": config.task_names}
        check_same(Path(config.output) / cell.model_name / "settings.json", settings)
