"""All settings of a training run in one place: from the command line, to config.yaml and back."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from pgprune.agents.reinforce import ReinforceConfig, default_learning_rate
from pgprune.cli import given
from pgprune.errors import PruningError
from pgprune.export import FORMATS
from pgprune.initialization import InitConfig
from pgprune.models import ModelConfig
from pgprune.problem import PruningConfig
from pgprune.run import RunConfig
from pgprune.sections import Sections
from pgprune.stream import DataConfig

AGENTS = ("reinforce",)


@dataclass(frozen=True)
class AgentConfig:
    """Agent: what chooses the masks."""

    agent: str = field(
        default="reinforce", metadata={"help": "the algorithm", "choices": list(AGENTS)}
    )


@dataclass(frozen=True)
class TrainingRunConfig(RunConfig):
    """Run: how long, where the results go, and what is made of them."""

    export: str | None = field(
        default=None,
        metadata={
            "help": "also write the pruned model, as scripts/export.py does by default, into a "
            "folder of that name in the run",
            "choices": list(FORMATS),
            "default": "no export",
        },
    )


@dataclass(frozen=True)
class Settings(Sections):
    """One frozen config for each concern; the fields' names are the sections of config.yaml."""

    agent: AgentConfig = AgentConfig()
    run: TrainingRunConfig = TrainingRunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    pruning: PruningConfig = PruningConfig()
    init: InitConfig = InitConfig()
    reinforce: ReinforceConfig = ReinforceConfig()

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


def check_resume(arguments: argparse.Namespace) -> None:
    """Refuses other options beside ``--resume``, whose run has its own.

    Raises:
        PruningError: an option was given that the run's settings would silently override.
    """
    for config in Settings.configs().values():
        for name in given(config, arguments):
            if name not in ("resume", "quiet", "export"):
                raise PruningError(
                    f"--resume goes on under the run's own settings, so --{name.replace('_', '-')} "
                    "has no effect; leave it out, or start a new run"
                )
