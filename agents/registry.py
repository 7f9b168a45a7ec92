"""The registry of agents: all that the rest of the project has to know of each.

A new agent is one file, with its options and its class, and one line in ``AGENTS``. The command
line, config.yaml, the training run and the experiments read this table.
"""

from dataclasses import dataclass

from pgprune.agents.auto import Auto, AutoConfig
from pgprune.agents.base import Agent
from pgprune.agents.cma_es import CMAES, PACKAGE, CMAESConfig
from pgprune.agents.evolution import Evolution, EvolutionConfig
from pgprune.agents.random_search import RandomSearch, RandomSearchConfig
from pgprune.agents.reinforce import Reinforce, ReinforceConfig
from pgprune.agents.sb3_off_policy import SacConfig, Td3Config
from pgprune.agents.sb3_on_policy import A2cConfig, PpoConfig, TrpoConfig
from pgprune.agents.stable_baselines import NO_RESUME, Sb3Agent, Sb3Config
from pgprune.utils.options import Config


@dataclass(frozen=True)
class Entry:
    """An agent as the registry has it.

    Attributes:
        agent: the class.
        config: its options: a section of config.yaml and a group of ``--help``. ``masks`` of a
            config is the number of masks in a step.
        actions: kinds of actions to choose from, the default first; empty where there is no choice.
        densities: whether it learns how much each layer keeps, whatever its action is.
        experts: whether it learns single experts where the share of each layer is fixed.
        stages: whether it can raise the prune rate in stages.
        metric: that it starts from for heads and channels; None takes the stream error.
        package: that it needs, and the extra of pgprune that installs the package.
        no_resume: why an interrupted run cannot be resumed; None if it can.
    """

    agent: type[Agent]
    config: type[Config]
    actions: tuple[str, ...] = ()
    densities: bool = False
    experts: bool = False
    stages: bool = False
    metric: str | None = None
    package: tuple[str, str] | None = None
    no_resume: str | None = None


def _sb3(config: type[Sb3Config]) -> Entry:
    package = config.package, "agents"
    return Entry(Sb3Agent, config, config.actions, package=package, no_resume=NO_RESUME)


AGENTS: dict[str, Entry] = {
    "reinforce": Entry(Reinforce, ReinforceConfig, stages=True, metric="wanda-sp"),
    "auto": Entry(Auto, AutoConfig, densities=True, experts=True),
    "random-search": Entry(RandomSearch, RandomSearchConfig, densities=True),
    "cma-es": Entry(CMAES, CMAESConfig, ("density", "score"), package=PACKAGE),
    "evolution": Entry(Evolution, EvolutionConfig),
    "ppo": _sb3(PpoConfig),
    "a2c": _sb3(A2cConfig),
    "trpo": _sb3(TrpoConfig),
    "sac": _sb3(SacConfig),
    "td3": _sb3(Td3Config),
}
"""Every agent by the name that ``--agent`` takes."""


def section_of(agent: str) -> str:
    """Returns the name of the section of config.yaml with an agent's options."""
    return agent.replace("-", "_")
