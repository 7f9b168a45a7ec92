"""What the two commands measure: their options, and the lists of cells that these stand for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pgprune.agents.registry import AGENTS
from pgprune.errors import PruningError
from pgprune.evaluation.evaluate import EvaluationConfig
from pgprune.experiments.cells import (
    FINEST,
    RANDOM,
    Cell,
    CellsConfig,
    ZeroShotTasks,
    check_method,
    check_names,
    parts,
)
from pgprune.experiments.hyperparameters import (
    BENCHMARK_SETTINGS,
    is_rate,
    read_hyperparameters,
)
from pgprune.masking.units import GRANULARITIES
from pgprune.methods import METHODS
from pgprune.repair.fit import REPAIRS
from pgprune.utils.devices import choose_device
from pgprune.utils.options import SEEDS, Config, option, same_option

_VARIANTS = (
    *("auto", "auto:reward=repaired"),
    *("reinforce", "reinforce:init=llm-pruner", "reinforce:granularity=layers"),
)
_LOSS = "cross-entropy"  # of scores
_OF_BENCHMARK = ("granularity", "quiet", "device", "dtype")


@dataclass(frozen=True)
class ComparedConfig(Config):
    """What is compared: every method at every prune rate on every model."""

    methods: tuple[str, ...] = option(
        ("all",),
        "methods and agents, each with options or without: auto:reward=repaired",
        metavar="X",
    )
    rates: tuple[float, ...] = option((0.2, 0.3, 0.4, 0.5), "prune rates", above=0, below=1)
    models: tuple[str, ...] = option(
        ("builtin",), "builtin, hub ids or directories of models", metavar="X"
    )


@dataclass(frozen=True)
class ComparisonConfig(CellsConfig):
    """Comparison: how much is measured, where it goes and what is shown of it."""

    file: ClassVar[str] = "comparison"

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
    marker: str = option("comparison", "--into: name of the section in the page")
    repairs: tuple[str, ...] = option(
        ("none", "least-squares"),
        "repairs of every mask",
        choices=("none", *REPAIRS),
    )
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
    def evaluations(self) -> int:
        """Mask evaluations of everything that learns."""
        return self.timesteps

    @property
    def all_repairs(self) -> list[str]:
        """The repairs that are measured beside each mask as its method leaves it."""
        return [how for how in dict.fromkeys(self.repairs) if how != "none"]

    @property
    def zero_shot(self) -> ZeroShotTasks:
        """The zero-shot tasks of every cell."""
        names = EvaluationConfig(tasks=self.tasks, task_data=self.task_data).task_names
        return ZeroShotTasks(names, self.task_data, self.limit)

    @property
    def shared(self) -> dict[str, Any]:
        """Settings that all cells of an output directory must have in common."""
        shots = {"limit": self.limit, "tasks": list(self.zero_shot.names)}
        return super().shared | {"timesteps": self.timesteps} | shots


@dataclass(frozen=True)
class BenchmarkedConfig(Config):
    """What is compared: every agent on every task."""

    agents: tuple[str, ...] = option(
        ("all",),
        "agents of pgprune train, each with options or without: ppo:action=density",
        metavar="X",
    )
    tasks: tuple[str, ...] = option(
        ("builtin:0.5",), "MODEL:RATE or MODEL:RATE:GRANULARITY", metavar="X"
    )


@dataclass(frozen=True)
class BenchmarkConfig(CellsConfig):
    """Benchmark: how much is measured, where it goes and what is shown of it."""

    kind: ClassVar[str] = "agent"
    file: ClassVar[str] = "benchmark"

    output: str = option(
        "benchmark", "directory of the runs, benchmark.jsonl, tables and plots", metavar="DIR"
    )
    seeds: int = option(5, "seeds of every agent", minimum=1)
    first_seed: int = option(0, "first seed", minimum=0, maximum=SEEDS)
    total_timesteps: int = option(
        500, "mask evaluations of every agent, each on 1,024 tokens", minimum=1
    )
    hyperparameters: str | None = option(
        None,
        "directory of AGENT.yaml files with options of the agents",
        unset="benchmark_settings of the package, chosen at 500 evaluations",
        metavar="DIR",
    )
    marker: str = option("benchmark", "--into: name of the section in the page")
    recommended: str = option(
        "auto", "agent compared with --against, seed by seed, by perplexity", metavar="AGENT"
    )
    against: str = option("reinforce", "agent that --recommended is compared with", metavar="AGENT")

    def __post_init__(self) -> None:
        """Checks every field, and that the agents to compare are agents."""
        super().__post_init__()
        for agent in (self.recommended, self.against):
            check_method(agent, AGENTS, "agent", _OF_BENCHMARK)

    @property
    def evaluations(self) -> int:
        """Mask evaluations of every agent."""
        return self.total_timesteps

    @property
    def shared(self) -> dict[str, Any]:
        """Settings that all cells of an output directory must have in common."""
        # Seconds are compared, so all cells run on one type of device.
        device = choose_device(self.device).type
        return super().shared | {"total_timesteps": self.total_timesteps, "device": device}

    @property
    def all_seeds(self) -> range:
        """The seeds of every agent."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def settings(self) -> Path:
        """The directory of the agents' settings."""
        return BENCHMARK_SETTINGS if self.hyperparameters is None else Path(self.hyperparameters)

    def options_of(self, cell: Cell) -> dict[str, Any]:
        """Returns the agent's settings for the task; what follows the agent's name wins."""
        # Random masks must not depend on the settings of random search.
        if cell.method == RANDOM:
            return dict(cell.options)
        return read_hyperparameters(cell.name, self.settings).of(cell) | cell.options


def all_methods() -> list[str]:
    """Returns what ``--methods all`` stands for: all methods, the agents and their variants."""
    return [*METHODS, *_VARIANTS]


def comparison_cells(compared: ComparedConfig, config: ComparisonConfig) -> list[Cell]:
    """Returns the cells of a comparison; all of a seed come before the next seed.

    Raises:
        PruningError: an unknown method, or two models of one name.
    """
    asked = compared.methods
    named = [name for one in asked for name in (all_methods() if one == "all" else [one])]
    for method in named:
        check_method(method, (*AGENTS, *METHODS))
    check_names(compared.models)
    cells = [
        Cell(method, model, rate, seed)
        for seed in range(config.seeds)
        for model in compared.models
        for rate in compared.rates
        for method in named
    ]
    chosen = [one for one in cells if one.seed == 0 or config.seeds_for_all or one.random]
    return list(dict.fromkeys(chosen))


def agent_cells(
    agents: Sequence[str], tasks: Sequence[str], seeds: Iterable[int], reference: bool = True
) -> list[Cell]:
    """Returns the cells of a benchmark; all of a seed come before the next seed.

    Args:
        agents: names, maybe with options; ``all`` stands for all.
        tasks: as ``task_of`` takes them.
        seeds: of every agent.
        reference: whether random masks are measured too.

    Raises:
        PruningError: an unknown agent or one without a score, a task that is none, or two models
            of one name.
    """
    named = [name for agent in agents for name in (AGENTS if agent == "all" else [agent])]
    for agent in named:
        check_method(agent, AGENTS, "agent", _OF_BENCHMARK)
        if reference and parts(agent)[1].get("loss", _LOSS) != _LOSS:
            raise PruningError(
                f"agent {agent!r} has another loss than random masks, so it has no score; compare "
                "perplexities by pgprune compare, or leave loss out"
            )
    parsed = [task_of(task) for task in tasks]
    check_names(model for model, _, _ in parsed)
    # Random masks come first, so that the first table already has scores.
    named = [*([RANDOM] if reference else []), *named]
    cells = [
        Cell(agent, model, rate, seed, granularity)
        for seed in seeds
        for model, rate, granularity in parsed
        for agent in named
    ]
    return list(dict.fromkeys(cells))


def task_of(text: str) -> tuple[str, float, str]:
    """Reads a task such as ``builtin:0.5`` or ``DIR:0.5:layers``.

    Returns:
        Model, prune rate and granularity.

    Raises:
        PruningError: it is no such text.
    """
    model, granularity = text, FINEST
    # From the right, as the path of a model may have colons.
    if text.rpartition(":")[2] in GRANULARITIES:
        model, _, granularity = text.rpartition(":")
    model, _, rate = model.rpartition(":")
    if not model or not is_rate(rate):
        raise PruningError(
            f"task {text!r} is not MODEL:RATE or MODEL:RATE:GRANULARITY, with a rate above 0 "
            f"and below 1 and a granularity of {', '.join(GRANULARITIES)}"
        )
    return model, float(rate), granularity
