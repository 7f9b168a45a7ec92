"""All settings of a training run in one place: from the command line, to config.yaml and back."""

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from pgprune.agents.reinforce import ReinforceConfig, default_learning_rate
from pgprune.cli import ArgumentParser, Config, from_arguments, given
from pgprune.errors import PruningError
from pgprune.initialization import InitConfig
from pgprune.models import ModelConfig
from pgprune.problem import PruningConfig
from pgprune.run import Run, RunConfig
from pgprune.stream import DataConfig

AGENTS = ("reinforce",)


@dataclass(frozen=True)
class AgentConfig:
    """Agent: what chooses the masks."""

    agent: str = field(
        default="reinforce", metadata={"help": "the algorithm", "choices": list(AGENTS)}
    )


@dataclass(frozen=True)
class Settings:
    """One frozen config for each concern; the fields' names are the sections of config.yaml."""

    agent: AgentConfig = AgentConfig()
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    pruning: PruningConfig = PruningConfig()
    init: InitConfig = InitConfig()
    reinforce: ReinforceConfig = ReinforceConfig()

    @classmethod
    def add_to(cls, parser: ArgumentParser) -> None:
        """Adds every setting to a command's options."""
        for config in _SECTIONS.values():
            parser.add(config)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """The settings of a new run, from parsed options."""
        return cls(
            **{name: from_arguments(config, arguments) for name, config in _SECTIONS.items()}
        )

    @classmethod
    def from_run(cls, run: Run) -> Self:
        """The settings that a run was started with.

        Raises:
            PruningError: its config.yaml lacks a section or holds a wrong value.
        """
        return cls(**{name: run.config(name, config) for name, config in _SECTIONS.items()})

    def sections(self, decided: dict[str, Any]) -> dict[str, Config | dict[str, Any]]:
        """The sections of config.yaml; ``decided`` holds what was chosen from the settings."""
        return {name: getattr(self, name) for name in _SECTIONS} | {"decided": decided}

    @property
    def learning_rate(self) -> float:
        """The asked step size, or the formula's."""
        asked = self.reinforce.learning_rate
        if asked is not None:
            return asked
        return default_learning_rate(self.run.total_timesteps, self.pruning.granularity)

    @property
    def name(self) -> str:
        """What a run of these settings is called."""
        model = "builtin" if self.model.model == "builtin" else Path(self.model.model).name
        return f"{self.agent.agent}-{model}-{self.pruning.prune_rate:g}-seed{self.run.seed}"


_SECTIONS: dict[str, Any] = {field.name: type(field.default) for field in fields(Settings)}


def check_resume(arguments: argparse.Namespace) -> None:
    """Refuses other options beside ``--resume``, whose run has its own.

    Raises:
        PruningError: an option was given that the run's settings would silently override.
    """
    for config in _SECTIONS.values():
        for name in given(config, arguments):
            if name not in ("resume", "quiet"):
                raise PruningError(
                    f"--resume goes on under the run's own settings, so --{name.replace('_', '-')} "
                    "has no effect; leave it out, or start a new run"
                )
