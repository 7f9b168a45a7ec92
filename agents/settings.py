"""All settings of a training run in one place: from the command line, to config.yaml and back."""

import argparse
from dataclasses import dataclass, field, replace
from typing import Self

from pgprune.agents.reinforce import ReinforceConfig, default_learning_rate
from pgprune.agents.repaired_reward import EVERY
from pgprune.cli import given
from pgprune.envs.reward import REWARDS
from pgprune.errors import PruningError
from pgprune.initialization import InitConfig
from pgprune.models import ModelConfig
from pgprune.problem import PruningConfig
from pgprune.repairing import RepairConfig
from pgprune.run_config import RunConfig
from pgprune.sections import Sections
from pgprune.stream import DataConfig

AGENTS = ("reinforce",)


@dataclass(frozen=True)
class AgentConfig:
    """Agent: what chooses the masks, and what they are rewarded for."""

    agent: str = field(
        default="reinforce", metadata={"help": "the algorithm", "choices": list(AGENTS)}
    )
    reward: str = field(
        default="plain",
        metadata={
            "help": "judge masks as they are (plain) or as they will be after --repair (repaired): "
            "with bias, pruned inputs stand at their means; with least-squares (then the default) "
            "and alternating, weights are refitted on average over the policy",
            "choices": list(REWARDS),
        },
    )
    reward_refit: int = field(
        default=EVERY,
        metadata={"help": "steps from one such refit to the next", "minimum": 1},
    )


@dataclass(frozen=True)
class TrainingRunConfig(RunConfig):
    """Run: how long, where the results go, and what is made of them."""

    total_timesteps: int = field(
        default=2000, metadata={"help": "mask evaluations, each on 1,024 tokens", "minimum": 1}
    )
    resume: str | None = field(
        default=None,
        metadata={
            "help": "directory of an interrupted run, to go on with it under its own settings",
            "default": "start a new run",
        },
    )
    checkpoint_every: int = field(
        default=50, metadata={"help": "steps from one checkpoint to the next", "minimum": 1}
    )


@dataclass(frozen=True)
class Settings(Sections):
    """One frozen config for each concern; the fields' names are the sections of config.yaml."""

    agent: AgentConfig = AgentConfig()
    run: TrainingRunConfig = TrainingRunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    pruning: PruningConfig = PruningConfig()
    repair: RepairConfig = RepairConfig()
    init: InitConfig = InitConfig()
    reinforce: ReinforceConfig = ReinforceConfig()

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """The settings of a new run, from parsed options.

        Raises:
            PruningError: masks are to be judged as repaired, but not to be repaired.
        """
        settings = super().from_arguments(arguments)
        if settings.agent.reward == "plain":
            return settings
        if settings.repair.repair == "none":
            raise PruningError(
                "--reward repaired judges masks as they will be repaired, but --repair is none; "
                "choose --repair least-squares or --reward plain"
            )
        if settings.repair.repair != "auto":
            return settings
        return replace(settings, repair=replace(settings.repair, repair="least-squares"))

    @property
    def refits(self) -> bool:
        """Whether rewards are computed with weights that are refitted to the policy."""
        return self.agent.reward == "repaired" and self.repair.repair != "bias"

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
        return self.run.name(self.agent.agent, self.model.model, self.pruning.prune_rate)


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
