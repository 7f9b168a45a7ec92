"""Every agent from its name and settings."""

from collections.abc import Callable

from pgprune.agents.actions import OFF_POLICY, ON_POLICY, check_scores
from pgprune.agents.auto import Auto
from pgprune.agents.base import Agent
from pgprune.agents.cma_es import CMAES, check_dimensions, load_cma
from pgprune.agents.evolution import Evolution
from pgprune.agents.random_search import RandomSearch
from pgprune.agents.reinforce import Reinforce
from pgprune.agents.stable_baselines import Sb3Agent, check_package
from pgprune.agents.training.settings import Settings
from pgprune.envs import LLMPruningVectorEnv
from pgprune.envs.nearby_repair import check_units as check_refits
from pgprune.envs.reward import check_reward
from pgprune.masking.units import PruningUnits
from pgprune.metrics import Importance, check_metric
from pgprune.metrics.initialization import PROGRESSIVE, initial_probabilities, progressive_rates

_CLASSES: dict[str, Callable[..., Agent]] = {
    "auto": Auto,
    "random-search": RandomSearch,
    "cma-es": CMAES,
    "evolution": Evolution,
    **dict.fromkeys((*ON_POLICY, *OFF_POLICY), Sb3Agent),
}
"""Agents made as (env, config, importance, seed), and ``action`` where they have a choice."""


def check_agent(settings: Settings) -> None:
    """Makes sure that an agent can be made and rewarded as it should, before a model is loaded.

    Args:
        settings: of a run.

    Raises:
        PruningError: a package is not installed, or the metric that it starts from or the reward
            does not fit the granularity.
    """
    granularity = settings.pruning.granularity
    check_metric(settings.metric, granularity)
    check_reward(settings.agent.reward, granularity)
    if settings.refits:
        check_refits(granularity)
    if settings.agent.agent == "cma-es":
        load_cma()
    if settings.agent.agent in (*ON_POLICY, *OFF_POLICY):
        check_package(settings.own)


def check_action(settings: Settings, units: PruningUnits) -> None:
    """Makes sure that an agent can act on a model's units, before any long work.

    Args:
        settings: of a run.
        units: to choose from.

    Raises:
        PruningError: there are too many of them for its action, or too few.
    """
    if settings.action is not None:
        check_scores(settings.action, units.n)
    if settings.agent.agent == "cma-es":
        check_dimensions(str(settings.action), units)


def make_agent(settings: Settings, env: LLMPruningVectorEnv, importance: Importance) -> Agent:
    """The agent of a run, before its first step.

    Args:
        settings: of the run.
        env: with as many masks as ``settings.masks``.
        importance: what the metric of ``settings.metric`` says.

    Raises:
        PruningError: the agent does not fit the environment.
    """
    name, seed = settings.agent.agent, settings.run.seed
    if name == "reinforce":
        return _reinforce(settings, env, importance)
    acting = {} if settings.action is None else {"action": settings.action}
    return _CLASSES[name](env, settings.own, importance, seed, **acting)


def _reinforce(settings: Settings, env: LLMPruningVectorEnv, importance: Importance) -> Reinforce:
    rates, start = None, env.budget
    transform = settings.init.init_transform
    if settings.init.init == PROGRESSIVE:
        rates = progressive_rates(start.prune_rate)
        start = start.with_rate(rates[0])
        if transform == "auto":  # score-const would start from the mask of the full rate
            transform = "sigmoid-norm"
    constant = settings.init.init_constant
    initial = initial_probabilities(importance, start, transform, constant)
    return Reinforce(env, settings.reinforce, initial, rates, settings.run.seed)
