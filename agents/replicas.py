"""Replicas of a run's model in other processes: when there are any, and what they are told."""

from collections.abc import Iterator
from contextlib import contextmanager

from pgprune import distributed, ranks
from pgprune.agents.repaired_reward import REFIT_WINDOWS, RepairedReward
from pgprune.agents.settings import Settings
from pgprune.cli import dump_yaml, from_dict, load_yaml
from pgprune.distributed import Ranks
from pgprune.envs import LLMPruningVectorEnv
from pgprune.errors import PruningError
from pgprune.judging import Judge, Team
from pgprune.problem import Problem, make_problem


@contextmanager
def team_of(settings: Settings) -> Iterator[Team | None]:
    """The replicas that share the masks of a run, which begin to load; None for a run alone.

    Raises:
        PruningError: they would have nothing to do.
    """
    if ranks.world_size() == 1:
        yield None
        return
    check_team(ranks.world_size(), settings)
    _check_devices(settings)
    team = Ranks(dump_yaml(settings.sections({})))
    try:
        yield team
    finally:
        team.close()


def check_team(size: int, settings: Settings) -> None:
    """Makes sure that every replica gets a mask.

    Raises:
        PruningError: there are more replicas than masks.
    """
    if size > settings.masks:
        raise PruningError(
            f"{size} replicas cannot share the {settings.masks} masks of a step; start at most "
            f"{settings.masks}, or let agent {settings.agent.agent} try more masks a step"
        )


def serve() -> int:
    """What all processes but the main one do; returns the exit status."""
    return distributed.serve(judge_of)


def judge_of(text: str) -> Judge:
    """A replica that judges masks as the environment of a run does.

    Args:
        text: the settings of the run, as YAML.

    Raises:
        PruningError: anything that cannot work here.
    """
    sections = load_yaml(text, "the settings")
    settings = Settings(
        **{name: from_dict(kind, sections[name]) for name, kind in Settings.configs().items()}
    )
    seed, masks = settings.run.seed, settings.masks
    problem = make_problem(settings.model, settings.data, settings.pruning, seed, masks)
    env = make_env(settings, problem)
    if settings.refits:
        windows = problem.stream.head(settings.init.init_samples)[:REFIT_WINDOWS]
        RepairedReward(env, windows, settings.repair.repair_damping)
    return env.judge


def make_env(settings: Settings, problem: Problem) -> LLMPruningVectorEnv:
    """The environment of a run; ``RepairedReward`` lets it judge with refitted weights."""
    reward = "plain" if settings.refits else settings.agent.reward
    return LLMPruningVectorEnv(settings.masks, reward=reward, problem=problem)


def _check_devices(settings: Settings) -> None:
    """Makes sure that the processes of a host can have a device each."""
    local, model = ranks.local_world_size(), settings.model
    if local > 1 and model.device_map is not None:
        raise PruningError(
            f"device_map {model.device_map} spreads one replica over all devices of a host, which "
            f"has {local} processes; start one on each host, or leave --device-map out"
        )
    if local > 1 and ":" in model.device:
        raise PruningError(
            f"device {model.device} would hold the replicas of all {local} processes; choose "
            "cuda or auto, which give each a device of its own"
        )
