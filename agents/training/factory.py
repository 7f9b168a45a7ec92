"""Creates an agent from a run's settings, and checks early that this will work."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from pgprune.agents.base import Agent, load_package
from pgprune.agents.level_search import LevelSearch
from pgprune.agents.training.config import LEVELS
from pgprune.agents.training.settings import Settings
from pgprune.envs import LLMPruningVectorEnv
from pgprune.envs.arguments import MOST_MASKS
from pgprune.envs.nearby_repair import check_units as check_refits
from pgprune.envs.reward import check_reward
from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits
from pgprune.metrics import METRICS, Importance


@runtime_checkable
class WarmStart(Protocol):
    """An agent that can start from what its like has learned at another prune rate."""

    def start_from(self, learned: Mapping[str, Tensor], mask: Tensor) -> None:
        """Starts from the tensors of a learned ``state``, and its answer, (n,)."""


def check_agent(settings: Settings) -> None:
    """Makes sure, before a model is loaded, that an agent can be made and rewarded as asked.

    Args:
        settings: of a run.

    Raises:
        PruningError: too many masks of a step, a package that is not installed, or a metric to
            start from or a reward that does not fit the granularity.
    """
    granularity = settings.pruning.granularity
    if settings.masks > MOST_MASKS:
        raise PruningError(
            f"agent {settings.agent.agent} is to evaluate {settings.masks:,} masks in each step; "
            f"choose at most {MOST_MASKS:,}"
        )
    METRICS[settings.metric].check(granularity)
    check_reward(settings.reward_of_env, settings.agent.loss, granularity)
    if settings.refits or settings.reward == LEVELS:
        check_refits(granularity)
    if (package := settings.entry.package) is not None:
        load_package(settings.agent.agent, *package)


def check_action(settings: Settings, units: PruningUnits) -> None:
    """Makes sure, before any long work, that an agent can act on a model's units.

    Args:
        settings: of a run.
        units: to choose from.

    Raises:
        PruningError: there are too many of them for its action, or too few.
    """
    settings.entry.agent.check_units(units, settings.action)


def searches_levels(settings: Settings) -> bool:
    """Tells if the recommended agent is the search among levels; other agents only reach them."""
    return settings.agent.agent == "auto" and settings.reward == LEVELS


def make_agent(settings: Settings, env: LLMPruningVectorEnv, importance: Importance) -> Agent:
    """Creates the agent of a run, before its first step.

    Args:
        settings: of the run.
        env: with as many masks as ``settings.masks``.
        importance: of the units, by the metric ``settings.metric``.

    Raises:
        PruningError: the agent does not fit the environment.
    """
    if searches_levels(settings):
        return LevelSearch(env, importance, settings.run.seed)
    return settings.entry.agent.from_settings(
        env, settings.own, importance, settings.init, settings.run.seed, settings.action
    )
