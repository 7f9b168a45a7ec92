"""What a benchmark of agents is made of: its settings, its tasks, its cells and their commands.

A task is a model, a prune rate and a granularity. A cell is an agent on a task under a seed: a run
like any other, in ``DIR/TASK/AGENT/seedN``, made as ``scripts/train_agent.py`` makes it. An agent
with options, as in ``ppo:action=density`` or ``auto:total-timesteps=100``, is one of its own.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pgprune.agents.registry import AGENTS
from pgprune.errors import PruningError
from pgprune.experiments.cells import CellsConfig, check_names, model_name, named_options, words
from pgprune.masking.units import GRANULARITIES
from pgprune.utils.options import option

RANDOM = "random"
"""What stands in the place of an agent where masks of random scores are measured."""

FINEST = "heads+channels"
_RANDOM_WORDS = {"agent": "random-search", "init": "random", "total_timesteps": 1}
_OURS = (
    *("agent", "model", "prune_rate", "granularity", "seed", "output", "resume", "export"),
    *("quiet", "device", "dtype"),
)


@dataclass(frozen=True)
class BenchmarkConfig(CellsConfig):
    """Benchmark: how much is measured, where it goes and what is shown of it."""

    output: str = option(
        "benchmark", "directory of the runs, benchmark.jsonl, tables and plots", metavar="DIR"
    )
    seeds: int = option(5, "seeds of every agent", minimum=1)
    first_seed: int = option(0, "first seed", minimum=0)
    total_timesteps: int = option(
        500, "mask evaluations of every agent, each on 1,024 tokens", minimum=1
    )
    hyperparameters: str | None = option(
        None,
        "directory of AGENT.yaml files with options of the agents",
        unset="benchmark_settings of the package, chosen at 500 evaluations",
        metavar="DIR",
    )
    into: str | None = option(
        None,
        "Markdown page whose section between <!-- benchmark --> marks is replaced",
        unset="print the report",
        metavar="FILE",
    )
    recommended: str = option(
        "auto", "agent compared with --against, seed by seed, by perplexity", metavar="AGENT"
    )
    against: str = option("reinforce", "agent that --recommended is compared with", metavar="AGENT")

    def __post_init__(self) -> None:
        """Refuses values out of range, and agents to compare that are none."""
        super().__post_init__()
        for agent in (self.recommended, self.against):
            agent_options(agent)

    @property
    def all_seeds(self) -> range:
        """The seeds of every agent."""
        return range(self.first_seed, self.first_seed + self.seeds)


@dataclass(frozen=True)
class BenchmarkTask:
    """A pruning problem that agents are measured on.

    Attributes:
        model: ``builtin``, a hub id or a directory.
        rate: share of the prunable parameters to remove.
        granularity: what one mask bit prunes.
    """

    model: str
    rate: float
    granularity: str = FINEST

    @classmethod
    def parse(cls, text: str) -> Self:
        """The task of a text such as ``builtin:0.5`` or ``DIR:0.5:layers``.

        Raises:
            PruningError: it is no such text.
        """
        model, granularity = text, FINEST
        if text.rpartition(":")[2] in GRANULARITIES:
            model, _, granularity = text.rpartition(":")
        model, _, rate = model.rpartition(":")
        if not model or not is_rate(rate):
            raise PruningError(
                f"task {text!r} is not MODEL:RATE or MODEL:RATE:GRANULARITY, with a rate above 0 "
                f"and below 1 and a granularity of {', '.join(GRANULARITIES)}"
            )
        return cls(model, float(rate), granularity)

    @property
    def name(self) -> str:
        """What records and tables call it, such as ``stories260K:0.5``."""
        coarse = "" if self.granularity == FINEST else f":{self.granularity}"
        return f"{model_name(self.model)}:{self.rate:g}{coarse}"


@dataclass(frozen=True)
class BenchmarkCell:
    """An agent on a task under a seed.

    Attributes:
        agent: its name, maybe with options: ``ppo:action=density``; or ``RANDOM``.
        task: what it is measured on.
        seed: of everything random.
    """

    agent: str
    task: BenchmarkTask
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from other cells in the records."""
        return self.agent, self.task.name, self.seed

    @property
    def folder(self) -> Path:
        """The directory of the runs of its agent on its task, in that of the benchmark."""
        task, agent = (re.sub(r"[^\w.=+-]+", "-", name) for name in (self.task.name, self.agent))
        return Path(task) / agent

    @property
    def path(self) -> Path:
        """The run's directory in that of the benchmark."""
        return self.folder / f"seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.task.name} {self.agent} seed {self.seed}"

    def words(
        self, config: BenchmarkConfig, data: Mapping[str, Any], own: Mapping[str, Any]
    ) -> list[str]:
        """The options of its command, train_agent.py.

        Args:
            config: of the benchmark.
            data: options for the text, by field; the built-in model has its own text.
            own: hyperparameters of the agent, by field.
        """
        name = agent_options(self.agent)[0]
        learning = {"agent": name, "total_timesteps": config.total_timesteps, **own}
        options = {
            **(_RANDOM_WORDS if name == RANDOM else learning),
            "model": self.task.model,
            "prune_rate": self.task.rate,
            "granularity": self.task.granularity,
            "seed": self.seed,
            "output": Path(config.output) / self.path,
            "device": config.device,
            "dtype": config.dtype,
            **text_of(self.task.model, data),
        }
        return [*words(options), "--quiet"]


def agent_options(agent: str) -> tuple[str, dict[str, str]]:
    """An agent's name and the options that follow it: ``name:option=value,option=value``.

    Raises:
        PruningError: the name is unknown, or something that follows is not an option.
    """
    if agent == RANDOM:
        return RANDOM, {}
    return named_options(agent, "agent", AGENTS, _OURS)


def is_rate(text: str) -> bool:
    """Whether a text is a number above 0 and below 1."""
    return bool(re.fullmatch(r"0?\.\d+", text)) and float(text) > 0


def text_of(model: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The options for the text, by field, that are about a model; the built-in one has its own."""
    own = ("calibration", "evaluation") if model == "builtin" else ()
    return {name: value for name, value in data.items() if name not in own}


def plan(
    agents: Sequence[str], tasks: Sequence[str], seeds: Iterable[int], reference: bool = True
) -> list[BenchmarkCell]:
    """The cells of a benchmark, each once; all of a seed come before the next seed.

    Args:
        agents: names, maybe with options; ``all`` stands for all.
        tasks: as ``BenchmarkTask.parse`` takes them.
        seeds: of every agent.
        reference: whether random masks are measured too.

    Raises:
        PruningError: an unknown agent, a task that is none, or two models of one name.
    """
    named = [name for agent in agents for name in (AGENTS if agent == "all" else (agent,))]
    for agent in named:
        agent_options(agent)
    parsed = [BenchmarkTask.parse(task) for task in tasks]
    check_names(task.model for task in parsed)
    named = [*([RANDOM] if reference else []), *named]
    cells = [
        BenchmarkCell(agent, task, seed) for seed in seeds for task in parsed for agent in named
    ]
    return list(dict.fromkeys(cells))
