"""All settings of a training run in one place: from the command line, to config.yaml and back."""

import argparse
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from pgprune.agents.a2c import A2cConfig
from pgprune.agents.actions import ACTIONS, KINDS, OFF_POLICY, ON_POLICY, chosen_action
from pgprune.agents.auto import AutoConfig
from pgprune.agents.cma_es import CMAESConfig
from pgprune.agents.evolution import EvolutionConfig
from pgprune.agents.ppo import PpoConfig
from pgprune.agents.random_search import RandomSearchConfig
from pgprune.agents.reinforce import ReinforceConfig, default_learning_rate
from pgprune.agents.sac import SacConfig
from pgprune.agents.stable_baselines import NO_RESUME
from pgprune.agents.td3 import Td3Config
from pgprune.agents.trpo import TrpoConfig
from pgprune.data.stream import DataConfig
from pgprune.envs.reward import REWARDS
from pgprune.errors import PruningError
from pgprune.masking.problem import PruningConfig
from pgprune.metrics.initialization import PROGRESSIVE, InitConfig, metric_name
from pgprune.models.load import ModelConfig
from pgprune.repair.config import RepairConfig
from pgprune.runs.run import Run
from pgprune.runs.settings import RunConfig, Sections
from pgprune.utils.command_line import given
from pgprune.utils.options import Config, option

AGENTS = ("reinforce", "auto", "random-search", "cma-es", "evolution", *ON_POLICY, *OFF_POLICY)
"""Each has a section of its name in ``Settings`` and, but for reinforce, a class in making.py."""

STARTS_OVER = dict.fromkeys((*ON_POLICY, *OFF_POLICY), NO_RESUME)
"""Agents that cannot go on with a run, and why."""


@dataclass(frozen=True)
class AgentConfig(Config):
    """Agent: what chooses the masks, and what they are rewarded for."""

    agent: str = option(
        "reinforce",
        "the algorithm: the paper's (reinforce), the recommended one, which needs a "
        "tenth of the evaluations (auto), or a search or an algorithm of Stable-Baselines3 to "
        "compare with",
        choices=list(AGENTS),
    )
    action: str | None = option(
        None,
        "what an agent that has a choice acts in: masks, how much each layer keeps of "
        "each kind (density), or a score for each unit",
        choices=list(KINDS),
        unset=", ".join(f"{name}: {kinds[0]}" for name, kinds in ACTIONS.items()),
    )
    reward: str = option(
        "plain",
        "judge masks as they are (plain) or as they will be after --repair (repaired): "
        "with bias, pruned inputs stand at their means; with least-squares (then the default) "
        "and alternating, weights are refitted to each mask",
        choices=list(REWARDS),
    )
    reward_refit: int | None = option(
        None,
        "steps until the second moments for these refits are taken anew, in the "
        "repaired model of the present answer",
        minimum=1,
        unset="a tenth of the run",
    )


@dataclass(frozen=True)
class TrainingRunConfig(RunConfig):
    """Run: how long, where the results go, and what is made of them."""

    total_timesteps: int = option(2000, "mask evaluations, each on 1,024 tokens", minimum=1)
    resume: str | None = option(
        None,
        "directory of an interrupted run, to go on with it under its own settings",
        unset="start a new run",
    )
    checkpoint_every: int = option(50, "steps from one checkpoint to the next", minimum=1)
    ray_actors: int | None = option(
        None,
        "share the masks of a step among this many actors of Ray, each with a replica of the model",
        minimum=1,
        unset="none; for one host or fixed ones there is torchrun",
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
    auto: AutoConfig = AutoConfig()
    random_search: RandomSearchConfig = RandomSearchConfig()
    cma_es: CMAESConfig = CMAESConfig()
    evolution: EvolutionConfig = EvolutionConfig()
    ppo: PpoConfig = PpoConfig()
    a2c: A2cConfig = A2cConfig()
    trpo: TrpoConfig = TrpoConfig()
    sac: SacConfig = SacConfig()
    td3: Td3Config = Td3Config()

    later: ClassVar[tuple[str, ...]] = (
        "repair",
        "auto",
        "random_search",
        "cma_es",
        "evolution",
        *ON_POLICY,
        *OFF_POLICY,
    )

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """The settings of a new run, from parsed options.

        Raises:
            PruningError: masks are to be judged as repaired, but not to be repaired; or something
                that the agent cannot do.
        """
        settings = super().from_arguments(arguments)
        agent = settings.agent.agent
        chosen_action(agent, settings.agent.action)
        if agent != "reinforce" and settings.init.init == PROGRESSIVE:
            raise PruningError(
                f"init {PROGRESSIVE} raises the prune rate in stages, which agent {agent} does not "
                "have; choose another init, or agent reinforce"
            )
        scope = settings.pruning.scope
        if settings.learns_densities and scope != "global":
            raise PruningError(
                f"agent {agent} learns how much each layer keeps, which scope {scope} fixes; "
                "choose agent reinforce, or scope global"
            )
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
    def masks(self) -> int:
        """Masks of a step."""
        return self.own.masks

    @property
    def own(self) -> Any:
        """The section of the agent."""
        return getattr(self, self.agent.agent.replace("-", "_"))

    @property
    def action(self) -> str | None:
        """What the agent acts in, None if it has no choice."""
        return chosen_action(self.agent.agent, self.agent.action)

    @property
    def learns_densities(self) -> bool:
        """Whether what it chooses is how much each layer keeps of each kind."""
        return self.agent.agent in ("auto", "random-search") or self.action == "density"

    @property
    def metric(self) -> str:
        """The metric that the agent starts from.

        Raises:
            PruningError: it does not score the units.
        """
        fine = "stream-error-refit" if self.refits else "stream-error"
        if self.agent.agent == "reinforce":
            fine = "wanda-sp"
        return metric_name(self.init.init, self.pruning.granularity, fine)

    @property
    def learning_rate(self) -> float:
        """The step size of reinforce: the asked one, or the formula's."""
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
            if name not in ("resume", "quiet", "export", "ray_actors"):
                raise PruningError(
                    f"--resume goes on under the run's own settings, so --{name.replace('_', '-')} "
                    "has no effect; leave it out, or start a new run"
                )


def resumed(run: Run, export: str | None = None, ray_actors: int | None = None) -> Settings:
    """The settings of a run to go on with, what was decided then included.

    Args:
        run: to go on with.
        export: the format to export in the end; None leaves it as it was asked then.
        ray_actors: how many share the masks of a step; None as well.

    Raises:
        PruningError: the run is not finished, and its agent cannot go on.
    """
    settings, decided = Settings.from_run(run), run.sections.get("decided", {})
    agent = settings.agent.agent
    if agent in STARTS_OVER and not run.finished:
        raise PruningError(
            f"agent {agent} cannot go on with {run.path}, because {STARTS_OVER[agent]}; start a "
            "new run"
        )
    executor = decided.get("executor", settings.pruning.executor)
    rate = decided.get("learning_rate", settings.reinforce.learning_rate)
    return replace(
        settings,
        run=replace(
            settings.run,
            export=export or settings.run.export,
            ray_actors=ray_actors or settings.run.ray_actors,
        ),
        pruning=replace(settings.pruning, executor=executor),
        reinforce=replace(settings.reinforce, learning_rate=rate),
    )
