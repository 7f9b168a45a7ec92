"""Options of making a smaller model, and what they mean for the search."""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from pgprune.agents.training.recommended import recommended
from pgprune.agents.training.settings import Settings
from pgprune.budget.problem import PruningConfig
from pgprune.data.stream import DataConfig
from pgprune.errors import PruningError
from pgprune.models.load import ModelConfig
from pgprune.runs.settings import RunConfig
from pgprune.utils.command_line import given
from pgprune.utils.options import Config, option, same_option

FORMATS = ("hf", "gguf")
"""Formats that a model is made in."""

_OF_SEARCH = ("seed", "device", "dtype", "family", "total_timesteps")  # of both


@dataclass(frozen=True)
class MakeConfig(Config):
    """Making: how long it recovers, and what comes out."""

    recovery_minutes: float | None = option(
        None,
        "time for the dense model to teach the pruned one, about",
        above=0,
        unset="no recovery",
    )
    formats: tuple[str, ...] = option(
        ("hf",), "what to write: a Hugging Face model, a llama.cpp file", choices=list(FORMATS)
    )
    output: str | None = option(
        None, "new directory for all of it", unset="it must be given", metavar="DIR"
    )
    dry_run: bool = option(False, "only say what would be done, how long and with what memory")
    resume: str | None = option(
        None,
        "directory of an interrupted make to resume with its own settings",
        unset="start a new one",
        metavar="DIR",
    )
    total_timesteps: int | None = option(
        None,
        "mask evaluations of the search, each on 1,024 tokens",
        minimum=1,
        unset="as pgprune train --agent auto",
    )
    device: str = same_option(ModelConfig, "device", "auto")
    dtype: str = same_option(ModelConfig, "dtype", "auto")
    family: str = same_option(ModelConfig, "family", "known")
    seed: int = same_option(RunConfig, "seed", 0)
    quiet: bool = option(False, "print only errors")

    def __post_init__(self) -> None:
        """Refuses what an option does not allow, and a format twice."""
        super().__post_init__()
        if len(set(self.formats)) < len(self.formats):
            raise PruningError(f"formats {' '.join(self.formats)} name one twice; name each once")


def search_settings(model: str, config: MakeConfig, arguments: Namespace) -> Settings:
    """Returns the settings of the search, by the recommended agent.

    Args:
        model: to prune.
        config: of the whole.
        arguments: parsed options of the command, without those that were not given.

    Raises:
        PruningError: options that contradict.
    """
    typed: dict[str, Any] = {"agent": "auto", "model": model, "seed": config.seed}
    for kind in (DataConfig, PruningConfig):
        typed |= given(kind, arguments)
    typed |= {name: vars(arguments)[name] for name in _OF_SEARCH if name in vars(arguments)}
    chosen = recommended(Namespace(**typed))
    return Settings.from_arguments(Namespace(**typed | chosen))


def resumed_alone(arguments: Namespace) -> None:
    """Refuses other options beside ``--resume``, which has its own.

    Raises:
        PruningError: one was given.
    """
    allowed = ("resume", "quiet")
    if arguments.model is not None:
        raise PruningError(
            f"--resume keeps its own settings, so the model {arguments.model!r} has no effect; "
            "leave it out"
        )
    for name in vars(arguments):
        if name not in (*allowed, "model"):
            raise PruningError(
                f"--resume keeps its own settings, so --{name.replace('_', '-')} has no effect; "
                "leave it out"
            )
