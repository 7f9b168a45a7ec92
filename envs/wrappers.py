"""Wrappers that turn actions in a ``Box`` into masks of exactly the budget.

``ScoreAction`` takes a score for each unit. ``DensityAction`` takes the share that each layer keeps
of each kind: a few dozen numbers even for a large model, so agents like SAC, TD3 or CMA-ES work,
too. The ``Vector...`` wrappers do the same for ``LLMPruningVectorEnv``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorActionWrapper, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.envs.arguments import real_numbers
from pgprune.envs.llm_pruning import LLMPruningEnv
from pgprune.envs.vector import Array, LLMPruningVectorEnv
from pgprune.errors import PruningError
from pgprune.metrics import METRICS
from pgprune.metrics.importance import places

_WINDOWS = 128  # of calibration text for the metric, as in the paper
_IMPORTANCE = "importance must be an array of numbers"

Numbers = npt.NDArray[Any]
Scores = Callable[[Tensor], Tensor]
"""A function from an action to the units' scores, (n,), which the budget rounds to a mask."""


class ScoreAction(gym.ActionWrapper[Numbers, Numbers, Numbers], RecordConstructorArgs):
    """Takes a score for each unit and keeps the best that the budget allows.

    The action space becomes ``Box(-1, 1, (n,), float32)``; only the order of the scores counts.

    Args:
        env: an ``LLMPruningEnv``, wrapped or not.

    Raises:
        PruningError: another environment.

    Example:
        >>> import gymnasium as gym
        >>> import pgprune
        >>> from pgprune.envs import ScoreAction
        >>> env = ScoreAction(gym.make("pgprune/LLMPruning-v0", granularity="layers"))
        >>> _ = env.reset(seed=0)
        >>> *_, info = env.step(env.action_space.sample())
        >>> info["excess"]
        0.0
    """

    def __init__(self, env: gym.Env[Numbers, Numbers]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        self.problem = _problem(env)
        self.action_space = _box(self.problem.units.n)

    def action(self, action: Numbers) -> Numbers:
        """Rounds scores to the budget's mask: (n,) -> (n,) uint8."""
        return _masks(self.problem, lambda scores: scores, _alone(action), self.action_space)[0]


class VectorScoreAction(VectorActionWrapper[Array, Array, Array, Array], RecordConstructorArgs):
    """``ScoreAction`` for ``LLMPruningVectorEnv``: scores (K, n), an array or a tensor."""

    def __init__(self, env: VectorEnv[Array, Array, Array]) -> None:
        RecordConstructorArgs.__init__(self)
        VectorActionWrapper.__init__(self, env)
        self.problem = _problem(env)
        self.single_action_space = _box(self.problem.units.n)
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def actions(self, actions: Array) -> Array:
        """Rounds scores to the budget's masks: (K, n) -> (K, n) uint8."""
        return _masks(self.problem, lambda scores: scores, actions, self.single_action_space)


class DensityAction(gym.ActionWrapper[Numbers, Numbers, Numbers], RecordConstructorArgs):
    """Takes the share that each layer keeps of each kind, and fills it in order of importance.

    The action space becomes ``Box(-1, 1, (groups,), float32)``: -1 asks for none of a group's
    units, 1 for all of them. The densities of a pool are shifted together until the budget is met,
    as its projection does, so only their differences count.

    Args:
        env: an ``LLMPruningEnv``, wrapped or not.
        importance: importance of each unit, (n,); by default the metric ``wanda-sp``.

    Raises:
        PruningError: another environment, or importances of another shape.

    Example:
        >>> import gymnasium as gym
        >>> import pgprune
        >>> from pgprune.envs import DensityAction
        >>> env = DensityAction(gym.make("pgprune/LLMPruning-v0"))
        >>> env.action_space.shape == (len(env.unwrapped.units.groups),)
        True
        >>> _ = env.reset(seed=0)
        >>> *_, info = env.step(env.action_space.sample())
        >>> info["excess"]
        0.0
    """

    def __init__(self, env: gym.Env[Numbers, Numbers], importance: Array | None = None) -> None:
        RecordConstructorArgs.__init__(self, importance=_recorded(importance))
        gym.ActionWrapper.__init__(self, env)
        self.problem = _problem(env)
        self.action_space = _box(len(self.problem.units.groups))
        self._scores = _density_scores(self.problem, importance)

    def action(self, action: Numbers) -> Numbers:
        """Fills densities to the budget's mask: (groups,) -> (n,) uint8."""
        return _masks(self.problem, self._scores, _alone(action), self.action_space)[0]


class VectorDensityAction(VectorActionWrapper[Array, Array, Array, Array], RecordConstructorArgs):
    """``DensityAction`` for ``LLMPruningVectorEnv``: densities (K, groups), array or tensor."""

    def __init__(
        self, env: VectorEnv[Array, Array, Array], importance: Array | None = None
    ) -> None:
        RecordConstructorArgs.__init__(self, importance=_recorded(importance))
        VectorActionWrapper.__init__(self, env)
        self.problem = _problem(env)
        self.single_action_space = _box(len(self.problem.units.groups))
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self._scores = _density_scores(self.problem, importance)

    def actions(self, actions: Array) -> Array:
        """Fills densities to the budget's masks: (K, groups) -> (K, n) uint8."""
        return _masks(self.problem, self._scores, actions, self.single_action_space)


def _recorded(importance: Array | None) -> list[float] | None:
    """Returns importances as a specification of an environment writes them, in JSON."""
    return None if importance is None else real_numbers(importance, _IMPORTANCE).tolist()


def _alone(action: Numbers) -> Any:
    """Returns an action as a batch of one."""
    return action[None] if isinstance(action, Tensor) else [action]


def _masks(problem: Problem, scores: Scores, actions: Array, single: gym.Space[Any] | None) -> Any:
    """Turns actions (K, ...) into masks (K, n) uint8, of the same type and device.

    Raises:
        PruningError: actions of another shape, or not numbers.
    """
    rows = real_numbers(actions, "an action must be an array of numbers")
    assert single is not None and single.shape is not None
    if rows.shape[1:] != single.shape:
        raise PruningError(f"an action must have shape {single.shape}, got {tuple(rows.shape[1:])}")
    # The budget rounds on the host, exactly.
    masks = torch.stack([problem.budget.round(scores(row)) for row in rows.double()])  # (K, n)
    return masks.to(actions.device) if isinstance(actions, Tensor) else masks.numpy()


def _density_scores(problem: Problem, importance: Array | None) -> Scores:
    """Makes a function from densities to scores whose rounding fills them in order of importance.

    Let d_g in [0, 1] be the density of group g, and r = 0, 1, ... the place of a unit among the m
    units of g, most important first. Its score is d_g - (r + 1/2) / m. Rounding keeps the scores
    above one threshold v for a pool, so group g keeps about (d_g - v) m of its best units.
    """
    units = problem.units
    if importance is None:
        importance = _wanda_sp(problem)
    important = real_numbers(importance, _IMPORTANCE).double()
    if important.shape != (units.n,):
        raise PruningError(f"importance must have shape ({units.n},), got {tuple(important.shape)}")
    place, size = places(units, important)
    position = (place + 0.5) / size.double()  # (n,)
    return partial(_filled, units.group, position)


def _filled(group: Tensor, position: Tensor, action: Tensor) -> Tensor:
    """Scores units (n,) by the densities of an action (groups,) in [-1, 1]."""
    return ((action + 1) / 2)[group] - position


def _wanda_sp(problem: Problem) -> Tensor:
    """Returns the metric's scores, (n,); groups of one unit, such as blocks, need no order."""
    if problem.units.n == len(problem.units.groups):
        return torch.zeros(problem.units.n)
    windows = problem.stream.head(_WINDOWS)
    return METRICS["wanda-sp"](problem.lm, windows, problem.budget, 0).scores


def _problem(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> Problem:
    unwrapped = env.unwrapped
    if not isinstance(unwrapped, LLMPruningEnv | LLMPruningVectorEnv):
        raise PruningError(f"{env} is not an LLM pruning environment, so it has no budget")
    return unwrapped.problem


def _box(size: int) -> spaces.Box:
    return spaces.Box(-1, 1, (size,), np.float32)
