"""The base of all agents: the learning loop, the mask, and saving without a pickle."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import VectorEnv
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pgprune.agents.actions import check_scores
from pgprune.budget.problem import TOKENS_PER_TIMESTEP
from pgprune.envs import LLMPruningVectorEnv
from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits
from pgprune.metrics import Importance
from pgprune.metrics.initialization import InitConfig
from pgprune.utils.files import saving, tensor_bytes, write_file
from pgprune.utils.jsonl import parse_json
from pgprune.utils.progress import track
from pgprune.utils.progress_view import showing
from pgprune.utils.transfer import read

COUNTS = ("seed", "steps", "skipped", "in_vain")  # in every agent's state, besides its own
_MOST_STEPS_IN_VAIN = 20
Callback = Callable[[Any, dict[str, float]], bool | None]


class Agent(ABC):
    """Base of an agent; a subclass says how one step learns and which mask it has found.

    Args:
        env: the vector environment, whose ``num_envs`` masks make a step.
        masks: number that the agent's settings ask for; None takes that of the environment.
        seed: of the masks and of the calibration stream.

    Attributes:
        steps: steps done.
        skipped: masks whose loss was not a finite number.
        in_vain: steps in a row with too few finite losses to learn from.

    Raises:
        PruningError: another environment, or one with another number of masks.
    """

    saved_tensors: ClassVar[tuple[str, ...]] = ()
    """Attributes of the state besides the generator; the first has an entry for each unit."""

    saved_values: ClassVar[tuple[str, ...]] = COUNTS
    """Attributes that go into the state as JSON."""

    def __init__(self, env: VectorEnv[Any, Any, Any], masks: int | None, seed: int) -> None:
        name = type(self).__name__
        if not isinstance(env.unwrapped, LLMPruningVectorEnv):
            raise PruningError(
                f"{name} needs the vector environment, not {type(env.unwrapped).__name__}; make "
                'it with gym.make_vec("pgprune/LLMPruning-v0", num_envs=2)'
            )
        if masks not in (None, env.num_envs):
            raise PruningError(
                f"{name} evaluates {masks} masks a step but the environment has num_envs "
                f"{env.num_envs}; make them equal"
            )
        self.env = env.unwrapped
        self.seed = seed
        self.budget = self.env.budget
        self.steps = self.skipped = self.in_vain = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._other_generator = torch.Generator().manual_seed(seed)  # learning must not see it

    @classmethod
    def from_settings(
        cls,
        env: LLMPruningVectorEnv,
        config: Any,
        importance: Importance,
        init: InitConfig,
        seed: int,
        action: str | None = None,
    ) -> "Agent":
        """Makes the agent of a run, before its first step.

        Args:
            env: the vector environment, with ``config.masks`` masks in a step.
            config: the agent's options.
            importance: of the units, by the metric of the run.
            init: how keep probabilities are made of it, for agents that have some.
            seed: of the masks and of the calibration stream.
            action: the kind of action, None if the agent has no choice.

        Raises:
            PruningError: the options do not fit the environment.
        """
        make: Callable[..., Agent] = cls
        return make(env, config, importance, seed, *([] if action is None else [action]))

    @classmethod
    def check_units(cls, units: PruningUnits, action: str | None) -> None:
        """Makes sure, before any long work, that an agent can act on a model's units.

        Raises:
            PruningError: there are too many of them for its action, or too few.
        """
        check_scores(action, units.n)

    @property
    def probabilities(self) -> Tensor:
        """Keep probability of each unit, (n,) float64; by default 0 or 1, as in ``mask``."""
        return self.mask().double()

    @abstractmethod
    def mask(self) -> Tensor:
        """Returns the mask that it has found, within the budget, (n,) uint8 on the CPU."""

    @abstractmethod
    def _learn_step(self, total_steps: int, total_timesteps: int) -> dict[str, float]:
        """Does one step and counts it; returns its figures."""

    @abstractmethod
    def draw(self) -> Tensor:
        """Draws one mask from the current policy, (n,) uint8."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns all that a resume needs: tensors, and values that JSON can hold."""
        tensors = {name: getattr(self, name) for name in self.saved_tensors}
        tensors["generator"] = self._generator.get_state()
        return tensors, {name: getattr(self, name) for name in self.saved_values}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Continues from what ``state`` returned.

        Raises:
            PruningError: the state is over another number of units, or of another device.
        """
        self._check_saved(tensors, self.saved_tensors[0])
        for name in self.saved_tensors:
            setattr(self, name, tensors[name].to(getattr(self, name).device))
        try:
            self._generator.set_state(tensors["generator"])
        except RuntimeError as error:
            raise PruningError(
                "the saved agent drew its masks on another kind of device than "
                f"{self._generator.device}; load the model where it was saved"
            ) from error
        for name in self.saved_values:
            setattr(self, name, values[name])

    def learn(
        self, total_timesteps: int, callback: Callback | None = None, progress_bar: bool = False
    ) -> Self:
        """Learns until ``total_timesteps`` masks were evaluated, counted from the beginning.

        Args:
            total_timesteps: masks evaluated on 1,024 tokens each; other batches in proportion.
            callback: called after each step with the agent and its figures; False stops.
            progress_bar: shows one.

        Raises:
            PruningError: the losses are not finite numbers for too many steps in a row.
        """
        total_steps = self.steps_for(total_timesteps)
        self.env.reset(seed=self.seed)
        for stream in self.env.streams:
            stream.seek(self.steps)  # one batch a step, so that a resume continues there
        remaining: Iterable[int] = range(self.steps, total_steps)
        with showing() if progress_bar else nullcontext():
            for _ in track(remaining, "learning", unit="steps") if progress_bar else remaining:
                figures = self._learn_step(total_steps, total_timesteps)
                if callback and callback(self, figures) is False:
                    break
        return self

    def steps_for(self, total_timesteps: int) -> int:
        """Converts ``total_timesteps`` to steps of this batch size and number of masks."""
        return max(1, math.ceil(total_timesteps * TOKENS_PER_TIMESTEP / self.step_tokens))

    @property
    def timesteps(self) -> int:
        """Mask evaluations done, in units of 1,024 tokens."""
        return self.steps * self.step_tokens // TOKENS_PER_TIMESTEP

    @property
    def step_tokens(self) -> int:
        """Tokens that a step evaluates, those of all its masks."""
        stream = self.env.stream
        return self.env.num_envs * stream.batch_size * stream.sequence_length

    def _losses(self, masks: Tensor) -> Tensor:
        """Evaluates masks (K, n) on the next batch: losses (K,) float64 on the host."""
        (losses,) = read(self._losses_on_device(masks))  # the one wait for the device in a step
        return losses

    def _losses_on_device(self, masks: Tensor) -> Tensor:
        """Does the same on the model's device, without waiting for it if masks are on the host."""
        return -torch.as_tensor(self.env.step(masks)[1])

    def _figures(
        self, losses: Tensor, own: dict[str, float], shares: Tensor | None = None
    ) -> dict[str, float]:
        """Returns what is logged: losses (K,), own figures, and kept shares, (kinds,)."""
        loss = float(losses[losses.isfinite()].mean())  # nan if there is none
        figures = {"rollout/loss": loss, "rollout/reward": -loss} | own
        shares = self._shares() if shares is None else shares
        for kind, share in zip(self.budget.units.kinds, shares.tolist(), strict=True):
            figures[f"policy/kept_share/{kind}"] = share
        return figures | {"train/skipped": float(self.skipped)}

    def _shares(self) -> Tensor:
        """Returns the mean keep probability of each kind, (kinds,), on the policy's device."""
        return self.budget.units.kind_shares(self.probabilities[None])[0]

    def _can_learn(self, finite: Tensor, least: int = 1) -> bool:
        """Counts losses that are not finite, (K,); returns whether enough others are left."""
        self.skipped += int((~finite).sum())
        enough = int(finite.sum()) >= least
        self.in_vain = 0 if enough else self.in_vain + 1
        if self.in_vain >= _MOST_STEPS_IN_VAIN:
            raise PruningError(
                f"too few losses were finite numbers for {self.in_vain} steps in a row, so there "
                "is nothing to learn from; try --dtype bfloat16 or float32, or a lower prune rate"
            )
        return enough

    def _check_saved(self, tensors: dict[str, Tensor], name: str) -> None:
        """Refuses a saved vector over units, or groups of them, of another length than its own."""
        if (saved := len(tensors[name])) != (own := len(getattr(self, name))):
            raise PruningError(
                f"the saved agent chooses among {saved} units, this environment has {own}; take "
                "the model and granularity it was saved with"
            )

    def finalists(self) -> list[Tensor]:
        """Returns masks (n,) of which a run ships the best one after repair."""
        return [self.mask()]

    def predict(
        self, observation: Any = None, state: Any = None, deterministic: bool = True
    ) -> tuple[npt.NDArray[np.int8], Any]:
        """Returns a mask (n,) as an action: ``mask``, or a draw from the policy.

        Args:
            observation: not used, because the next batch does not depend on the last mask.
            state: returned as it is.
            deterministic: ``mask`` instead of a draw.
        """
        mask = self.mask() if deterministic else self.draw()
        return mask.cpu().numpy().astype(np.int8), state

    def save(self, path: str | Path) -> None:
        """Writes the agent's state to one safetensors file, or raises a PruningError."""
        tensors, values = self.state()
        with saving(Path(path), " or choose another place"):
            write_file(Path(path), tensor_bytes(tensors, {"state": json.dumps(values)}))

    def load(self, path: str | Path) -> "Agent":
        """Reads the state that ``save`` wrote into this agent, and returns it.

        Raises:
            PruningError: no such file, damaged, or of an agent over other units.
        """
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                values = parse_json(file.metadata()["state"])
        except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
            raise PruningError(f"{path} is not a saved agent: {error}") from error
        self.restore(tensors, values)
        return self


def lowest(losses: Tensor) -> float:
    """Returns the lowest of losses, (K,), that is a number; inf if there is none."""
    return float(losses.nan_to_num(torch.inf, torch.inf).min())


def load_package(agent: str, package: str, extra: str) -> Any:
    """Imports a package that an agent needs.

    Args:
        agent: its name.
        package: to import.
        extra: of pgprune, which installs the package.

    Raises:
        PruningError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise PruningError(
            f"agent {agent} needs the package {package}; run `pip install 'pgprune[{extra}]'`"
        ) from error
