"""All settings of a training run: from the command line, to config.yaml and back."""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from pgprune.agents.actions import chosen_action
from pgprune.agents.registry import AGENTS, Entry, section_of
from pgprune.agents.reinforce import ReinforceConfig, default_learning_rate
from pgprune.agents.training.config import LEVELS, AgentConfig, SweepConfig, TrainingRunConfig
from pgprune.budget.problem import Problem, PruningConfig, make_problem
from pgprune.data.stream import DataConfig
from pgprune.errors import PruningError
from pgprune.evaluation.time_table import times
from pgprune.masking.units import GRANULARITIES
from pgprune.metrics.initialization import PROGRESSIVE, InitConfig, metric_name
from pgprune.models.load import ModelConfig
from pgprune.repair.config import RepairConfig
from pgprune.runs.run import Run
from pgprune.runs.settings import Sections
from pgprune.utils.command_line import given
from pgprune.utils.options import Config
from pgprune.utils.process_ids import world_size


@dataclass(frozen=True)
class Settings(Sections):
    """One frozen config for each concern; the fields' names are the sections of config.yaml.

    Attributes:
        agents: options of agents by their section, which are sections of config.yaml as well.
    """

    agent: AgentConfig = AgentConfig()
    run: TrainingRunConfig = TrainingRunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    pruning: PruningConfig = PruningConfig()
    repair: RepairConfig = RepairConfig()
    init: InitConfig = InitConfig()
    sweep: SweepConfig = SweepConfig()
    agents: Mapping[str, Config] = field(default_factory=dict)

    @classmethod
    def configs(cls) -> dict[str, type[Config]]:
        """Returns the class of each section; every agent of the registry has one."""
        agents = {section_of(name): entry.config for name, entry in AGENTS.items()}
        return super().configs() | agents

    @classmethod
    def later(cls) -> Collection[str]:
        """Returns sections that runs of earlier versions lack; the first one had only reinforce."""
        return {*super().later(), "sweep", *map(section_of, AGENTS)} - {"reinforce"}

    @classmethod
    def of(cls, sections: Mapping[str, Any]) -> Self:
        """Makes the settings of sections by name; an absent one has its defaults."""
        agents = {name: sections[name] for name in map(section_of, AGENTS) if name in sections}
        shared = {name: config for name, config in sections.items() if name not in agents}
        return cls(**shared, agents=agents)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Makes the settings of a new run from parsed options.

        Raises:
            PruningError: masks are to be rewarded as repaired, but not to be repaired; or
                the agent does not support an option.
        """
        settings = super().from_arguments(arguments)
        agent = settings.agent.agent
        entry = settings.entry
        chosen_action(agent, entry.actions, settings.agent.action)
        if not entry.stages and settings.init.init == PROGRESSIVE:
            raise PruningError(
                f"init {PROGRESSIVE} raises the prune rate in stages, which agent {agent} does not "
                "have; choose another init, or agent reinforce"
            )
        scope = settings.pruning.scope
        fixed = scope != "global" and not (entry.experts and "experts" in settings.kinds)
        if settings.learns_densities and fixed:
            raise PruningError(
                f"agent {agent} learns how much each layer keeps, which scope {scope} fixes; "
                "choose agent reinforce, or scope global"
            )
        if settings.reward == LEVELS:
            _check_levels(settings)
        if settings.reward == "plain":
            return settings
        if settings.repair.repair == "none":
            raise PruningError(
                f"--reward {settings.reward} judges masks as they will be repaired, but "
                "--repair is none; choose --repair least-squares or --reward plain"
            )
        if settings.repair.repair != "auto" or settings.reward == LEVELS:
            return settings  # levels have weights of their own
        return replace(settings, repair=replace(settings.repair, repair="least-squares"))

    @property
    def reward(self) -> str:
        """Returns the reward that was asked for, or what ``auto`` stands for.

        The recommended agent searches levels where their weights, or better ones, will be shipped.
        """
        if self.agent.reward != "auto":
            return self.agent.reward
        shipped = self.repair.repair in ("least-squares", "alternating")
        fine = not {"attention", "layer", "experts"} & set(self.kinds)
        alone = self.run.ray_actors is None and world_size() == 1
        searched = self.agent.agent == "auto" and self.pruning.scope == "global"
        return LEVELS if searched and shipped and fine and alone else "plain"

    @property
    def refits(self) -> bool:
        """Returns whether rewards are computed with weights that are refitted to the policy."""
        return self.reward == "repaired" and self.repair.repair != "bias"

    @property
    def reward_of_env(self) -> str:
        """Returns the reward that the environment is made with, before weights are refitted."""
        return "plain" if self.refits or self.reward == LEVELS else self.reward

    def make_problem(self) -> Problem:
        """Loads the model and the text; see ``make_problem``."""
        biases = self.repair.repair == "bias"  # that the repair may add
        seed = self.run.seed
        return make_problem(self.model, self.data, self.pruning, seed, self.masks, biases, times)

    @property
    def masks(self) -> int:
        """Masks of a step."""
        return self.own.masks

    def section(self, name: str) -> Any:
        """Returns the config of a section."""
        if name in map(section_of, AGENTS):
            return self.agents.get(name) or self.configs()[name]()
        return super().section(name)

    @property
    def entry(self) -> Entry:
        """Returns the agent's entry in the registry."""
        return AGENTS[self.agent.agent]

    @property
    def own(self) -> Any:
        """Returns the agent's options."""
        return self.section(section_of(self.agent.agent))

    @property
    def action(self) -> str | None:
        """Returns the kind of action of the agent, None if it has no choice."""
        return chosen_action(self.agent.agent, self.entry.actions, self.agent.action)

    @property
    def learns_densities(self) -> bool:
        """Returns whether the agent learns how much each layer keeps of each kind."""
        return self.entry.densities or self.action == "density"

    @property
    def metric(self) -> str:
        """Returns the metric that the agent starts from.

        Raises:
            PruningError: it does not score the units.
        """
        searching = "stream-error-refit" if self.refits else "stream-error"
        fine = self.entry.metric or searching
        return metric_name(self.init.init, self.pruning.granularity, fine)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Returns the kinds of unit."""
        return GRANULARITIES[self.pruning.granularity]

    @property
    def learning_rate(self) -> float:
        """Returns the step size of reinforce: the asked one, or the formula's."""
        asked = self.section("reinforce").learning_rate
        if asked is not None:
            return asked
        return default_learning_rate(self.run.total_timesteps, self.pruning.granularity)

    @property
    def name(self) -> str:
        """Returns the default name of a run with these settings."""
        rates = self.sweep.prune_rates
        if rates is not None:
            span = f"{rates[0]:g}-{rates[-1]:g}"
            return f"{self.agent.agent}-{Path(self.model.model).name}-{span}-seed{self.run.seed}"
        return self.run.name(self.agent.agent, self.model.model, self.pruning.amount)


def _check_levels(settings: Settings) -> None:
    """Refuses what levels of refitted weights do not go with.

    Raises:
        PruningError: another repair, replicas, or layers whose share is fixed.
    """
    if settings.repair.repair == "bias":
        raise PruningError(
            "--reward levels is about refitted weights, but --repair is bias; choose --repair "
            "least-squares, or --reward repaired"
        )
    if settings.run.ray_actors is not None or world_size() > 1:
        raise PruningError(
            "--reward levels evaluates in one process, and several are asked for; leave out "
            "--ray-actors and torchrun, or choose --reward repaired"
        )
    if settings.pruning.scope != "global":
        raise PruningError(
            f"--reward levels is about how much each layer keeps, which scope "
            f"{settings.pruning.scope} fixes; choose scope global, or --reward repaired"
        )


def check_resume(arguments: argparse.Namespace) -> None:
    """Refuses other options beside ``--resume``, whose run has its own.

    Raises:
        PruningError: an option was given that the run's settings would silently override.
    """
    for config in Settings.configs().values():
        for name in given(config, arguments):
            if name not in ("resume", "quiet", "export", "ray_actors"):
                raise PruningError(
                    f"--resume keeps the run's own settings, so --{name.replace('_', '-')} "
                    "has no effect; leave it out, or start a new run"
                )


def resumed(run: Run, export: str | None = None, ray_actors: int | None = None) -> Settings:
    """Returns the settings of a run to resume, with what was decided when it started.

    Args:
        run: to resume.
        export: the format to export in the end; None leaves it as it was asked then.
        ray_actors: number of actors that share the masks of a step; None leaves it as it was.

    Raises:
        PruningError: the run is not finished, and its agent cannot resume.
    """
    settings, decided = Settings.from_run(run), run.sections.get("decided", {})
    agent = settings.agent.agent
    if (reason := settings.entry.no_resume) and not run.finished:
        raise PruningError(
            f"agent {agent} cannot resume {run.path}, because {reason}; start a new run"
        )
    # An automatic choice could differ now, which would change the losses.
    executor = decided.get("executor", settings.pruning.executor)
    reinforce: ReinforceConfig = settings.section("reinforce")
    rate = decided.get("learning_rate", reinforce.learning_rate)
    return replace(
        settings,
        run=replace(
            settings.run,
            export=export or settings.run.export,
            ray_actors=ray_actors or settings.run.ray_actors,
        ),
        pruning=replace(settings.pruning, executor=executor),
        agents={**settings.agents, "reinforce": replace(reinforce, learning_rate=rate)},
    )
