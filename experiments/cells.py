"""A cell: one measured configuration. It is one run, made by the command that its words are for."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pgprune.agents.registry import AGENTS
from pgprune.errors import PruningError
from pgprune.methods import METHODS
from pgprune.metrics import METRICS
from pgprune.models.load import ModelConfig
from pgprune.utils.devices import side_by_side
from pgprune.utils.options import Config, option, same_option

Key = tuple[str, str, int]
"""A cell's method, task and seed: what tells it from other cells in the records."""

FINEST = "heads+channels"
RANDOM = "random-search:init=random,total-timesteps=1"
"""The method that measures masks of random scores, against which agents are scored."""

_CHOSEN = (
    *("agent", "method", "model", "prune_rate", "seed", "output", "resume", "export"),
    *("evaluation", "evaluation_windows", "evaluation_lengths", "sequence_length"),  # of columns
)
_MOST_WORKERS = 8  # each loads a model


@dataclass(frozen=True)
class Cell:
    """A method on a model at a prune rate under a seed.

    Attributes:
        method: of ``METHODS`` or an agent, maybe with options of its command:
            ``reinforce:init=random``.
        model: ``builtin``, a hub id or a directory.
        rate: share of the prunable parameters to remove.
        seed: of everything random.
        granularity: what one mask bit prunes; None leaves it to the method.
    """

    method: str
    model: str
    rate: float
    seed: int
    granularity: str | None = None

    @property
    def name(self) -> str:
        """The method's name without options."""
        return parts(self.method)[0]

    @property
    def options(self) -> dict[str, str]:
        """The options that follow the method's name, by field."""
        return parts(self.method)[1]

    @property
    def task(self) -> str:
        """The pruning problem as records and tables name it, such as ``stories260K:0.5:layers``."""
        coarse = "" if self.granularity in (None, FINEST) else f":{self.granularity}"
        return f"{model_name(self.model)}:{self.rate:g}{coarse}"

    @property
    def key(self) -> Key:
        """The cell's key in the records."""
        return self.method, self.task, self.seed

    @property
    def path(self) -> Path:
        """The run's directory inside the output directory."""
        # Names hold colons and commas, which not every file system takes.
        task, method = (re.sub(r"[^\w.=+-]+", "-", name) for name in (self.task, self.method))
        return Path(task) / method / f"seed{self.seed}"

    @property
    def needs(self) -> str:
        """``backward`` if the method back-propagates through the model, else ``forward``."""
        agent, start = self.name in AGENTS, self.options.get("init", "")
        scorer = METRICS.get(start) if agent else METHODS[self.name]
        return "backward" if scorer is not None and scorer.backward else "forward"

    @property
    def random(self) -> bool:
        """True if the method draws; else a seed only shuffles its calibration windows."""
        return self.name in AGENTS or METHODS[self.name].random

    @property
    def script(self) -> str:
        """The command that makes the run."""
        return "train_agent" if self.name in AGENTS else "prune_baseline"

    def words(
        self, config: "CellsConfig", text: Mapping[str, Any], own: Mapping[str, Any]
    ) -> list[str]:
        """Returns the options of the cell's command as they are typed.

        Args:
            config: settings that all cells share.
            text: options for the text, by field.
            own: options of the method, by field; they win over the shared ones.
        """
        agent = self.name in AGENTS
        options: dict[str, Any] = {"agent" if agent else "method": self.name}
        if agent or METHODS[self.name].learns:
            options["total_timesteps" if agent else "learning_timesteps"] = config.evaluations
        options |= {
            "model": self.model,
            "prune_rate": self.rate,
            "seed": self.seed,
            "output": Path(config.output) / self.path,
            "device": config.device,
            "dtype": config.dtype,
            **text_of(self.model, text),
        }
        if self.granularity is not None:
            options["granularity"] = self.granularity
        return [*_words(options | dict(own)), "--quiet"]

    def __str__(self) -> str:
        return f"{self.task} {self.method} seed {self.seed}"


class ZeroShotTasks(NamedTuple):
    """Zero-shot tasks, the folder of their data (None takes lm-eval's), and items of each."""

    names: Sequence[str] = ()
    folder: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class CellsConfig(Config):
    """Cells: how they are measured."""

    kind: ClassVar[str] = "method"
    file: ClassVar[str] = "cells"
    output: str = option("cells", "directory of the runs, records, tables and plots", metavar="DIR")
    workers: int | None = option(
        None,
        "cells measured at a time, each on one CPU thread and at most one GPU",
        minimum=1,
        unset="one per GPU, else one per CPU core, at most 8",
    )
    retry: bool = option(False, "measure again the cells that failed with an error")
    report: bool = option(False, "measure nothing, only write the tables and plots")
    into: str | None = option(
        None,
        "Markdown page whose section between the --marker comments is replaced",
        unset="print the tables",
        metavar="FILE",
    )
    marker: str = option("cells", "--into: name of the section in the page")
    device: str = same_option(ModelConfig, "device", "auto")
    dtype: str = same_option(ModelConfig, "dtype", "auto")
    quiet: bool = option(False, "show no progress, only the results")

    @property
    def at_a_time(self) -> int:
        """The number of cells that are measured side by side."""
        return self.workers or min(_MOST_WORKERS, side_by_side(self.device))

    @property
    def evaluations(self) -> int:
        """Mask evaluations of everything that learns."""
        raise NotImplementedError

    @property
    def records(self) -> Path:
        """The file of the records, which only grows."""
        return Path(self.output) / f"{self.file}.jsonl"

    @property
    def shared(self) -> dict[str, Any]:
        """Settings that all cells of an output directory must have in common."""
        return {"dtype": self.dtype}

    @property
    def all_repairs(self) -> list[str]:
        """The repairs that are measured beside each mask as its method leaves it."""
        return []

    @property
    def zero_shot(self) -> ZeroShotTasks:
        """The zero-shot tasks of every cell."""
        return ZeroShotTasks()

    def options_of(self, cell: Cell) -> dict[str, Any]:
        """Returns the options of the cell's method, by field."""
        return dict(cell.options)


def parts(method: str) -> tuple[str, dict[str, str]]:
    """Splits ``name:option=value,option=value`` into the name and the options by field."""
    # Fields have underscores and options dashes; both may be typed.
    name, _, rest = method.partition(":")
    items = [item.partition("=") for item in filter(None, rest.split(","))]
    return name, {key.replace("-", "_"): value for key, _, value in items}


def check_method(
    method: str, names: Iterable[str], kind: str = "method", chosen: Sequence[str] = ()
) -> None:
    """Checks a method with its options, as far as its name and the form go.

    Args:
        method: as it was typed.
        names: the known names.
        kind: ``method`` or ``agent``, for the errors.
        chosen: fields that may not follow a name, besides those that every cell has.

    Raises:
        PruningError: the name is unknown, or something that follows is not an option.
    """
    name, _, rest = method.partition(":")
    if name not in names:
        known = ", ".join(dict.fromkeys(names))
        raise PruningError(f"{kind} {name!r} is unknown; choose all, or one of {known}")
    for item in filter(None, rest.split(",")):
        if not re.fullmatch(r"[^=]+=.+", item):
            raise PruningError(
                f"{item!r} in {kind} {method!r} is not an option and its value; write "
                f"{name}:option=value"
            )
    for field in parts(method)[1]:
        if field in (*_CHOSEN, *chosen):
            raise PruningError(
                f"{field} in {kind} {method!r} is chosen by the comparison; leave it out there"
            )


def model_name(model: str) -> str:
    """Returns what tables and directories call a model: ``builtin``, a hub id or a directory."""
    path = Path(model)
    return path.resolve().name if path.exists() else model.replace("/", "-")


def place_of(model: str) -> str:
    """Returns where a model is, which tells it from another model of its name."""
    path = Path(model)
    return str(path.resolve()) if path.exists() else model


def check_names(models: Iterable[str]) -> None:
    """Checks that no two models have the same name.

    Raises:
        PruningError: two models of one name.
    """
    for name, count in Counter(map(model_name, dict.fromkeys(models))).items():
        if count > 1:
            raise PruningError(
                f"{count} models are called {name!r}, and so would their runs; rename a directory"
            )


def text_of(model: str, text: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options for the text that are about a model; the built-in one has its own."""
    # One command measures the built-in model beside others, which need texts of their own.
    left_out = ("calibration", "evaluation") if model == "builtin" else ()
    return {name: value for name, value in text.items() if name not in left_out}


def _words(options: Mapping[str, object]) -> list[str]:
    """Spells options by field as they are typed; on and off have a name each."""
    return [word for name, value in options.items() for word in _word(f"--{name}", value)]


def _word(name: str, value: object) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    # YAML reads on and off as truth values, the command line as texts.
    switches = {"on": flag, "off": f"--no-{flag.removeprefix('--')}"}
    return [switches.get(str(value), f"{flag}={value}")]
