"""Wrappers that take a level for each layer and kind, of refitted weights.

The rewards are those of the weights that would be shipped. A choice may exceed the budget; ``info``
says by how much, and ``budget_penalty`` makes it count.
"""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorActionWrapper, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from pgprune.budget.level_grid import grid
from pgprune.envs.arguments import real_numbers
from pgprune.envs.llm_pruning import LLMPruningEnv
from pgprune.envs.vector import Array, LLMPruningVectorEnv
from pgprune.errors import PruningError
from pgprune.repair.fit import DAMPING
from pgprune.repair.fit_levels import fit_levels
from pgprune.repair.levels import Levels

Numbers = npt.NDArray[Any]


class LevelAction(gym.ActionWrapper[Numbers, Numbers, Numbers], RecordConstructorArgs):
    """Takes the level of each layer and kind: 0 keeps all of its units, the last level none.

    The action space becomes ``MultiDiscrete``, with one number for each group. From then on the
    environment evaluates levels, also those that other masks reach.

    Args:
        env: an ``LLMPruningEnv``, wrapped or not.
        folder: for the weights of the levels; complete levels in it are read and not fitted again.
        windows: of calibration text that the weights are fitted on.
        damping: of the fit, relative to the mean square of an input.

    Attributes:
        levels: the levels of each group.

    Raises:
        PruningError: another environment, or units that no projection has as inputs.

    Example:
        >>> import tempfile
        >>> import gymnasium as gym
        >>> import pgprune
        >>> from pgprune.envs import LevelAction
        >>> env = gym.make("pgprune/LLMPruning-v0", granularity="channels", channel_block=52)
        >>> env = LevelAction(env, tempfile.mkdtemp(), windows=8)
        >>> env.action_space.shape == (len(env.unwrapped.units.groups),)
        True
        >>> _ = env.reset(seed=0)
        >>> *_, info = env.step(env.action_space.sample())
    """

    def __init__(
        self,
        env: gym.Env[Numbers, Numbers],
        folder: str | Path,
        windows: int = 128,
        damping: float = DAMPING,
    ) -> None:
        RecordConstructorArgs.__init__(self, folder=str(folder), windows=windows, damping=damping)
        gym.ActionWrapper.__init__(self, env)
        self.levels = _use_levels(env, Path(folder), windows, damping)
        self.action_space = _space(self.levels)

    def action(self, action: Numbers) -> Numbers:
        """Turns levels into their mask: (groups,) -> (n,) uint8."""
        return _masks(self.levels, action[None] if isinstance(action, Tensor) else [action])[0]


class VectorLevelAction(VectorActionWrapper[Array, Array, Array, Array], RecordConstructorArgs):
    """``LevelAction`` for ``LLMPruningVectorEnv``: levels (K, groups), an array or a tensor."""

    def __init__(
        self,
        env: VectorEnv[Array, Array, Array],
        folder: str | Path,
        windows: int = 128,
        damping: float = DAMPING,
    ) -> None:
        RecordConstructorArgs.__init__(self, folder=str(folder), windows=windows, damping=damping)
        VectorActionWrapper.__init__(self, env)
        self.levels = _use_levels(env, Path(folder), windows, damping)
        self.single_action_space = _space(self.levels)
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def actions(self, actions: Array) -> Array:
        """Turns levels into their masks: (K, groups) -> (K, n) uint8."""
        return _masks(self.levels, actions)


def _use_levels(
    env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any], folder: Path, windows: int, damping: float
) -> Levels:
    """Reads or fits levels, and lets the environment evaluate them."""
    unwrapped = env.unwrapped
    if not isinstance(unwrapped, LLMPruningEnv | LLMPruningVectorEnv):
        raise PruningError(f"{env} is not an LLM pruning environment, so it has no levels")
    problem = unwrapped.problem
    if {"attention", "mlp", "layer"} & set(problem.units.kinds):
        raise PruningError(
            "levels are about units in the inputs of projections, not granularity "
            f"{problem.units.granularity}; choose heads+channels or values+channels"
        )
    levels = Levels.load(problem.units, folder, problem.lm.device)
    if levels is None:
        kept, _ = grid(problem.budget)
        levels = fit_levels(problem.lm, problem.stream.head(windows), kept, folder, damping)
    unwrapped.judge.levels = levels
    return levels


def _space(levels: Levels) -> spaces.MultiDiscrete:
    return spaces.MultiDiscrete([len(group.kept) for group in levels.groups])


def _masks(levels: Levels, actions: Any) -> Any:
    """Turns levels (K, groups) into masks (K, n) uint8, of the same type and device.

    Raises:
        PruningError: levels that are not there.
    """
    most = torch.tensor([len(group.kept) for group in levels.groups])
    expected = (
        f"an action must have {len(most)} whole numbers, each from 0 and below the number of "
        "levels of its group"
    )
    choices = real_numbers(actions, expected)
    fits = choices.ndim == 2 and choices.shape[1] == len(most) and not choices.is_floating_point()
    choices = choices.double()  # integers of every type compare as this one
    if not fits or bool(((choices < 0) | (choices >= most)).any()):
        raise PruningError(expected)
    masks = levels.masks(choices.long())
    return masks.to(actions.device) if isinstance(actions, Tensor) else masks.numpy()
