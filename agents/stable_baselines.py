"""The agent around an algorithm of Stable-Baselines3: PPO, A2C, TRPO, SAC or TD3.

``sb3_on_policy.py`` and ``sb3_off_policy.py`` have the algorithms' options. A step is one
rollout of K masks, which share a batch, and the library's own update. A policy over masks
(``--action mask``) is brought back onto the budget after each update, by one shift of its logits;
actions in a ``Box`` are on the budget by the environment's wrappers.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from pgprune.agents.actions import chosen_action
from pgprune.agents.base import Agent, load_package, lowest
from pgprune.agents.logits import logits_of, on_budget
from pgprune.agents.offsets import importance_of
from pgprune.envs import VectorDensityAction, VectorScoreAction
from pgprune.envs.randomness import Randomness
from pgprune.errors import PruningError
from pgprune.metrics import Importance
from pgprune.metrics.initialization import initial_probabilities
from pgprune.utils.options import Config

NO_RESUME = (
    "a checkpoint holds the policy, but not the optimizer, the replay buffer and the random state "
    "of Stable-Baselines3"
)


@dataclass(frozen=True)
class Sb3Config(Config):
    """Base of the options of one algorithm; the names of its fields begin with its own.

    Attributes:
        name: of the algorithm.
        package: that it is in.
        actions: kinds of actions that it can learn, the default first.
        reference: whether one mask of each step is that of the start.
        figures: of the library's log that a run shows.
    """

    name: ClassVar[str]
    package: ClassVar[str] = "stable_baselines3"
    actions: ClassVar[tuple[str, ...]] = ("mask", "density", "score")
    reference: ClassVar[bool] = False
    figures: ClassVar[tuple[str, ...]]

    @property
    def masks(self) -> int:
        """Masks of a step, the start's included where there is a reference."""
        raise NotImplementedError

    @property
    def learning_rate(self) -> float:
        """Step size in the first step; it falls to 0 over the run."""
        raise NotImplementedError

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """Makes the library's algorithm.

        Args:
            env: a ``PruningVecEnv``.
            start: logits or means to begin with, (d,).
            rate: step size, by how much of the run is left.
            seed: of everything random.
        """
        raise NotImplementedError


class Sb3Agent(Agent):
    """An algorithm of Stable-Baselines3, with this project's answer and checkpoints.

    Args:
        env: the vector environment; its ``num_envs`` is the masks of a step.
        config: of the algorithm: ``PpoConfig``, ``A2cConfig``, ``TrpoConfig``, ``SacConfig`` or
            ``Td3Config``.
        importance: of the units, or the name of a metric, that the policy starts from.
        seed: of the masks and of the calibration stream.
        action: ``mask``, ``density`` or ``score``; None takes the algorithm's own.

    Attributes:
        algorithm: the library's.

    Raises:
        PruningError: the config or the action does not fit, or a package is missing.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        config: Sb3Config,
        importance: Importance | str = "auto",
        seed: int = 0,
        action: str | None = None,
    ) -> None:
        super().__init__(env, config.masks, seed)
        load_package(config.name, config.package, "agents")
        self.config = config
        self.action = chosen_action(config.name, config.actions, action) or config.actions[0]
        self.check_units(self.budget.units, self.action)
        importance = importance_of(self.env, importance, seed)
        self._scores = importance.scores.cpu()
        self._start = self._first_action(initial_probabilities(importance, self.budget).cpu())
        self._rate = config.learning_rate
        self._restored = False
        # NumPy takes seeds of 32 bits.
        self._learning, self._other = Randomness(seed % 2**32), Randomness(seed % 2**32)
        with self._learning:
            self._set_up()

    @property
    def probabilities(self) -> Tensor:
        """Keep probabilities, (n,) float64; 0 or 1, as in ``mask``, of a policy over a ``Box``."""
        if self.action == "mask":
            return self.algorithm.policy.location.detach().double().sigmoid()
        return self.mask().double()

    def mask(self) -> Tensor:
        """Returns the budget's rounding of the policy, (n,) uint8 on the CPU."""
        if self.action == "mask":
            return self.budget.round(self.probabilities)
        return self._predicted(deterministic=True)

    def draw(self) -> Tensor:
        """Draws one mask from the policy, (n,) uint8."""
        with self._other:
            return self._predicted(deterministic=False)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns what ``mask`` and ``draw`` need: tensors, and values that JSON can hold."""
        policy = self.algorithm.policy.state_dict()
        tensors = {f"policy.{name}": value.clone() for name, value in policy.items()}
        tensors |= {"start": self._start, "scores": self._scores}
        values = {name: getattr(self, name) for name in self.saved_values}
        return tensors, values | {"algorithm": self.config.name, "action": self.action}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Takes the policy that ``state`` returned; it predicts, but cannot learn further.

        Raises:
            PruningError: the state is of another algorithm, action or number of units.
        """
        found = (values.get("algorithm"), values.get("action"), len(tensors.get("scores", ())))
        if found != (expected := (self.config.name, self.action, len(self._scores))):
            raise PruningError(
                f"the saved agent is {found[0]} with action {found[1]} on {found[2]} units, not "
                f"{expected[0]} with {expected[1]} on {expected[2]}; make the agent it was saved as"
            )
        self._start, self._scores = tensors["start"], tensors["scores"]
        with self._learning:
            self._set_up()
        prefix = "policy."
        policy = {name: value for name, value in tensors.items() if name.startswith(prefix)}
        self.algorithm.policy.load_state_dict(
            {name.removeprefix(prefix): value for name, value in policy.items()}
        )
        for name in self.saved_values:
            setattr(self, name, values[name])
        self._restored = True

    def _set_up(self) -> None:
        """Makes the library's view of the environment, and its algorithm."""
        from stable_baselines3.common.logger import Logger

        from pgprune.agents.sb3_env import PruningVecEnv

        env: Any = self.env
        if self.action == "density":
            env = VectorDensityAction(self.env, self._scores)
        elif self.action == "score":
            env = VectorScoreAction(self.env)
        is_mask, rate = self.action == "mask", lambda _: self._rate
        self._wrapped = env
        self._venv = PruningVecEnv(env, None if is_mask else self._start, self.config.reference)
        start = self._start if is_mask else torch.zeros_like(self._start)
        self.algorithm = self.config.algorithm(self._venv, start, rate, self.seed % 2**32)
        self.algorithm.set_logger(Logger(None, []))  # figures stay in it until they are read

    def _first_action(self, probabilities: Tensor) -> Tensor:
        """Converts keep probabilities (n,) to an action: logits, densities or scores."""
        if self.action == "mask":
            return logits_of(probabilities, self.budget)
        if self.action == "score":
            return 2 * probabilities - 1
        group = self.budget.units.group.cpu()  # (n,)
        # mean probability of each group, from [0, 1] to the range [-1, 1] of the Box
        return 2 * torch.bincount(group, probabilities) / torch.bincount(group) - 1

    def _learn_step(self, total_steps: int, total_timesteps: int) -> dict[str, float]:
        """Does one rollout and one update by the library; returns their figures."""
        if self._restored:
            name = self.config.name
            raise PruningError(f"agent {name} cannot resume, because {NO_RESUME}; start a new run")
        # The library would count its own rollouts for this, from a total that it is not given.
        self._rate = self.config.learning_rate * (1 - self.steps / total_steps)
        logged = self.algorithm.logger.name_to_value
        logged.clear()
        with self._learning:
            self.algorithm.learn(
                self._venv.num_envs, self._worth_learning, None, reset_num_timesteps=False
            )
        if self.action == "mask":  # the update leaves the budget, which the library does not know
            location = self.algorithm.policy.location.data
            location.copy_(on_budget(location, self.budget))
        self.steps += 1
        losses = self._venv.losses
        own = {"rollout/best_loss": lowest(losses), "train/learning_rate": self._rate}
        own |= {key: float(logged.get(key, math.nan)) for key in self.config.figures}
        return self._figures(losses, own)

    def _worth_learning(self, *_: Any) -> bool:
        """Returns whether the rewards differ; else the library drops the rollout."""
        return self._can_learn(self._venv.losses.isfinite(), least=2) and self._venv.informative

    def _predicted(self, deterministic: bool) -> Tensor:
        """Predicts a mask by the policy, (n,) uint8."""
        observation = np.ones((1, len(self.budget.units.groups) + 1), np.float32)
        observation[:, -1] = self.budget.target_share
        actions, _ = self.algorithm.predict(observation, deterministic=deterministic)
        rows = self._venv.env_actions(actions)
        return (rows if self.action == "mask" else self._wrapped.actions(rows))[0].to(torch.uint8)
