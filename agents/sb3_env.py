"""The vector environment for Stable-Baselines3: K masks on one model in one call."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

Numbers = npt.NDArray[Any]
_MOST = 10.0  # deviations between a reward and the reference's
_ROUNDING = 1e-9  # relative difference in the losses of equal masks


class PruningVecEnv(VecEnv):
    """``LLMPruningVectorEnv`` as a native ``VecEnv``; no mask is evaluated one at a time.

    Actions in a ``Box`` (behind ``VectorDensityAction`` or ``VectorScoreAction``) are offsets from
    ``start`` where that is given, so that an agent's first actions, near zero, are near it.

    With ``reference`` the environment's last row is ``start`` itself. Rewards are differences from
    its reward, in deviations of the first step and at most 10 of them. So the difficulty of a batch
    cancels, also for agents that remember the rewards of many batches.

    A loss that is not a finite number earns the lowest reward of its step.

    Args:
        env: an ``LLMPruningVectorEnv``, wrapped or not.
        start: an action (d,) of the ``Box``.
        reference: whether one row evaluates ``start``.

    Attributes:
        losses: of the last step's actions, without the reference's, (rows,) float64.
        informative: whether the last step's rewards are finite and differ beyond rounding.
    """

    losses: Tensor

    def __init__(
        self, env: VectorEnv[Any, Any, Any], start: Tensor | None = None, reference: bool = False
    ) -> None:
        self._env = env
        self._start = start
        self._reference = reference
        self._scale: float | None = None
        self.informative = False
        rows = env.num_envs - reference
        super().__init__(rows, env.single_observation_space, env.single_action_space)

    def reset(self) -> Numbers:
        """Starts an episode of every row; the calibration streams continue."""
        return self._env.reset()[0][: self.num_envs]

    def step_async(self, actions: Numbers) -> None:
        """Takes the actions (rows, d) of the next step."""
        self._actions = self.env_actions(actions)

    def env_actions(self, actions: Numbers) -> Tensor:
        """Converts actions (k, d) to those of the environment, which are offsets from ``start``."""
        rows = torch.from_numpy(np.asarray(actions))
        return rows if self._start is None else (self._start.float() + rows).clamp(-1, 1)

    def step_wait(self) -> tuple[Numbers, Numbers, Numbers, list[dict[str, Any]]]:
        """Returns observations, rewards, ends of episodes and infos of the rows."""
        actions, rows = self._actions, self.num_envs
        if self._reference:
            actions = torch.cat([actions, self.env_actions(np.zeros_like(actions[:1]))])  # (K, d)
        observations, rewards, ended, _, info = self._env.step(actions.numpy())
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(rows)]
        if "final_obs" in info:
            for row, last in zip(infos, info["final_obs"], strict=False):
                row["terminal_observation"] = last
        return observations[:rows], self.rewards(torch.from_numpy(rewards)), ended[:rows], infos

    def rewards(self, rewards: Tensor) -> Numbers:
        """Turns an environment's rewards (K,) into those of the agent, (rows,) float32."""
        rows = rewards[: self.num_envs]
        self.losses = -rows
        baseline = rewards[-1] if self._reference else torch.zeros(())
        finite = rows.isfinite()
        spread = float(rows[finite].max() - rows[finite].min()) if finite.any() else 0.0
        rounding = _ROUNDING * float(rows[finite].abs().sum())
        self.informative = bool(baseline.isfinite()) and spread > rounding
        if not self.informative:
            return np.zeros(self.num_envs, np.float32)
        rows = torch.where(finite, rows, rows[finite].min()) - baseline
        if not self._reference:
            return rows.float().numpy()
        if self._scale is None:
            self._scale = float(rows.std(correction=0))
        # A mask that breaks the model must not outweigh all others in a critic's squared error.
        return (rows / self._scale).clamp(-_MOST, _MOST).float().numpy()

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Returns an attribute of the one environment, once for each row."""
        return [getattr(self._env, attr_name, None) for _ in self._rows(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets an attribute of the one environment, which all rows share."""
        setattr(self._env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kw: Any) -> list[Any]:
        """Calls a method of the one environment once; returns its result for each row."""
        result = getattr(self._env, method_name)(*args, **kw)
        return [result for _ in self._rows(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        """Returns False for each row, because wrappers of single environments do not fit."""
        return [False for _ in self._rows(indices)]

    def _rows(self, indices: Any) -> Sequence[int]:
        return list(self._get_indices(indices))
