"""Replicas of a run's model in other processes: starts them, and makes the judge of each."""

from collections.abc import Iterator
from contextlib import contextmanager

from pgprune.agents.training import ranks_team
from pgprune.agents.training.ranks_team import Ranks
from pgprune.agents.training.ray_team import Actors
from pgprune.agents.training.repaired_reward import REFIT_WINDOWS
from pgprune.agents.training.settings import Settings
from pgprune.budget.problem import Problem
from pgprune.envs import LLMPruningVectorEnv
from pgprune.envs.judge import Judge, Replicas
from pgprune.envs.nearby_repair import NearbyRepair
from pgprune.errors import PruningError
from pgprune.utils import process_ids as ranks
from pgprune.utils.options import dump_yaml, from_dict, load_yaml


@contextmanager
def team_of(settings: Settings) -> Iterator[Replicas | None]:
    """Starts the replicas that share the masks of a run; yields None if there are none.

    Raises:
        PruningError: they would have nothing to do.
    """
    processes, actors = ranks.world_size(), settings.run.ray_actors
    if processes == 1 and actors is None:
        yield None
        return
    _check_masks(actors or processes, settings)
    _check_devices(settings)
    setup = dump_yaml(settings.sections({}))
    gpus = settings.model.device != "cpu"
    team = Ranks(setup) if actors is None else Actors(actors, setup, judge_of, gpus)
    try:
        yield team
    finally:
        team.close()


def _check_masks(size: int, settings: Settings) -> None:
    """Makes sure that every replica gets a mask."""
    if size > settings.masks:
        raise PruningError(
            f"{size} replicas cannot share the {settings.masks} masks of a step; start at most "
            f"{settings.masks}, or let agent {settings.agent.agent} try more masks a step"
        )


def serve() -> int:
    """Runs a process that is not the main one; returns the exit status."""
    return ranks_team.serve(judge_of)


def judge_of(text: str) -> Judge:
    """Makes a judge that evaluates masks as the environment of a run does.

    Args:
        text: the settings of the run, as YAML.

    Raises:
        PruningError: anything that cannot work here.
    """
    sections = load_yaml(text, "the settings")
    configs = Settings.configs().items()
    settings = Settings.of({name: from_dict(kind, sections[name]) for name, kind in configs})
    problem = settings.make_problem()
    env = make_env(settings, problem)
    if settings.refits:
        windows = problem.stream.head(settings.init.init_samples)[:REFIT_WINDOWS]
        env.judge.use(NearbyRepair(problem.lm, windows, settings.repair.damping))
    return env.judge


def make_env(settings: Settings, problem: Problem) -> LLMPruningVectorEnv:
    """Makes the environment of a run; ``Judge.use`` lets it evaluate with refitted weights."""
    return LLMPruningVectorEnv(
        settings.masks,
        reward=settings.reward_of_env,
        loss=settings.agent.loss,
        reward_precision=settings.agent.reward_precision,
        problem=problem,
    )


def _check_devices(settings: Settings) -> None:
    """Makes sure that the replicas of a host can have a device each."""
    actors, model = settings.run.ray_actors, settings.model
    local = actors or ranks.local_world_size()
    if actors is not None and ranks.world_size() > 1:
        raise PruningError(
            f"--ray-actors {actors} and {ranks.world_size()} processes contradict each other; "
            "start it without torchrun, or leave --ray-actors out"
        )
    if local > 1 and model.device_map is not None:
        raise PruningError(
            f"device_map {model.device_map} spreads one replica over all devices of a host, which "
            f"has to hold {local}; start one on each host, or leave --device-map out"
        )
    if local > 1 and ":" in model.device:
        raise PruningError(
            f"device {model.device} would hold all {local} replicas of a host; choose cuda or "
            "auto, which give each a device of its own"
        )
