"""K masks a step on one model: the environment for agents that learn from many masks at once."""

import copy
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from pgprune.budget.problem import Problem, PruningConfig
from pgprune.data.stream import evaluation_windows, first_windows
from pgprune.envs import rendering
from pgprune.envs.arguments import check_arguments, real_numbers
from pgprune.envs.precision import PRECISIONS
from pgprune.envs.reward import check_reward, reward_judge
from pgprune.errors import PruningError, check_choice
from pgprune.losses.windows import window_losses
from pgprune.masking.perplexity import perplexity
from pgprune.utils.transfer import read, send

Array = npt.NDArray[Any] | Tensor


class LLMPruningVectorEnv(VectorEnv[Array, Array, Array]):
    """Prune a frozen large language model, K masks a step: see ``LLMPruningEnv``.

    All rows begin and end their episodes together, and a step that ends them resets them
    (``SAME_STEP``): it returns the next episode's first observations, and the last ones of the
    ended episode are in ``info["final_obs"]``. ``info`` carries the step's ``loss`` (K,),
    ``kept_shares`` (K, groups) and ``excess`` (K,), also in ``info["final_info"]`` if it was the
    episode's last.

    ``step`` takes NumPy arrays and returns NumPy arrays, or takes a tensor and returns tensors on
    the model's device. With a tensor on the host it does not wait for the device.
    """

    metadata = {
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        reward: str = "plain",
        loss: str = "cross-entropy",
        reward_precision: str = "highest",
        budget_penalty: float = 0.0,
        horizon: int = 1,
        shared_batch: bool = True,
        seed: int | None = None,
        render_mode: str | None = None,
        problem: Problem | None = None,
        **options: Any,
    ) -> None:
        """Loads the model and the text, unless they come with ``problem``.

        Args:
            num_envs: K, the masks of a step.
            reward: see the table in ``LLMPruningEnv``, as for all that follows.
            loss: what the reward is minus of.
            reward_precision: of products of float32 matrices.
            budget_penalty: weight of the excess in the reward.
            horizon: steps of an episode.
            shared_batch: all rows share one batch; else each row has its own stream.
            seed: of the calibration stream.
            render_mode: ``None``, ``ansi`` or ``rgb_array``.
            problem: model, text and budget, loaded.
            **options: fields of ``ModelConfig``, ``DataConfig`` and ``PruningConfig``, without a
                problem.

        Raises:
            PruningError: an argument that is not allowed.
        """
        check_arguments(num_envs, horizon, seed or 0, budget_penalty)
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        granularity = options.get("granularity", PruningConfig.granularity)
        check_choice("reward_precision", reward_precision, PRECISIONS)
        check_reward(reward, loss, problem.units.granularity if problem else granularity)
        if problem is None:
            problem = Problem.make(seed or 0, num_envs, **options)
        elif options:
            raise PruningError(
                f"{', '.join(options)} cannot be given beside a problem, which is loaded already"
            )
        self.problem = problem
        self.units = problem.units
        self.budget = problem.budget
        self.num_envs = num_envs
        self.judge = reward_judge(problem, reward, loss, reward_precision)
        self.horizon = horizon
        self.budget_penalty = budget_penalty
        self.shared_batch = shared_batch
        self.render_mode = render_mode
        # Forked streams, so that environments that share a problem do not disturb each other.
        first = problem.stream.seed if seed is None else seed  # row i has the seed first + i
        rows = range(1 if shared_batch else num_envs)
        self.streams = tuple(problem.stream.fork(first + row) for row in rows)
        self.stream = self.streams[0]  # of all rows, or of the first

        groups = len(self.units.groups)
        self.single_action_space = spaces.MultiBinary(self.units.n)
        self.single_observation_space = spaces.Box(0, 1, (groups + 1,), np.float32)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._elapsed = 0  # steps of the episode, the same for all rows
        self._shares = torch.ones(num_envs, groups, dtype=torch.float64)  # kept, of the last masks

    def at(self, problem: Problem) -> "LLMPruningVectorEnv":
        """Returns an environment with another budget over the same model, judge and streams.

        Args:
            problem: this one's, but for the budget.
        """
        other = copy.copy(self)
        other.problem, other.budget = problem, problem.budget
        return other

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Starts an episode of all rows from the unpruned model.

        Args:
            seed: starts the calibration stream of this seed (row ``i`` of ``seed + i`` with
                ``shared_batch=False``); without one, the streams continue.
            options: ``reset_mask`` of all rows, as they begin together; else not used.

        Returns:
            The observations, (K, groups + 1), and an empty info.

        Raises:
            PruningError: a ``reset_mask`` that leaves rows out.
        """
        if not np.all((options or {}).get("reset_mask", True)):
            raise PruningError("reset_mask leaves rows out, but all rows begin together; reset all")
        super().reset(seed=seed)
        if seed is not None:
            for row, stream in enumerate(self.streams):
                stream.reseed(seed + row)
        self._elapsed = 0
        self._shares = torch.ones_like(self._shares)
        return self._observations(self._shares).cpu().numpy(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Evaluates K masks on the next calibration batch.

        Args:
            actions: the masks, (K, n) of zeros and ones, an array or a tensor.

        Returns:
            Observations (K, groups + 1), rewards (K,) float64, terminations (K,), truncations (K,)
            and info; arrays for an array, tensors on the model's device for a tensor.

        Raises:
            PruningError: actions that are not K masks of the units.
        """
        masks = self._masks(actions, self.num_envs)  # (K, n), on the host
        loss = self._losses(masks)  # (K,), which the device still computes
        if not isinstance(actions, Tensor):
            (loss,) = read(loss)  # waits; a tensor's caller may use the time for other work
        excess = send(self.budget.excess(masks), loss.device)  # (K,)
        self._shares = send(self.units.kept_shares(masks), loss.device)  # (K, groups)
        self._elapsed += 1
        ended = self._elapsed >= self.horizon

        on_device = isinstance(actions, Tensor)

        # Copies, since a caller may write to what a step returns.
        def out(values: Tensor) -> Array:
            return values.clone() if on_device else values.numpy(force=True).copy()

        present = np.ones(self.num_envs, dtype=np.bool_)  # all rows end together
        step_info = {"loss": loss, "kept_shares": self._shares, "excess": excess}
        info = _described(step_info, out, present)
        observations = out(self._observations(self._shares))  # (K, groups + 1)
        if ended:  # SAME_STEP: the observations are already those of the next episode
            info["final_obs"] = np.fromiter(observations, dtype=object)
            info["final_info"] = _described(step_info, out, present)
            info |= {"_final_obs": present.copy(), "_final_info": present.copy()}
            observations = out(self._observations(torch.ones_like(self._shares)))
            self._elapsed = 0
        rewards = out(-loss - self.budget_penalty * excess)
        flags = torch.full_like(loss, ended, dtype=torch.bool)
        return observations, rewards, out(flags), out(torch.zeros_like(flags)), info

    def evaluate(self, masks: Tensor, input_ids: Tensor) -> Tensor:
        """Evaluates masks (M, n) on sequences (B, T) as rewards do, without a step: losses (M, B).

        Raises:
            ResourceError: there is not enough memory, or a replica is lost.
        """
        return self.judge(masks, input_ids)

    def render(self) -> tuple[Any, ...] | None:
        """Draws the kept share by layer and kind of each row's last mask.

        Returns:
            A string (``ansi``) or a picture (``rgb_array``) for each row, ``None`` without a
            render mode.
        """
        if self.render_mode is None:
            gym.logger.warn(
                "render was called without a render mode; give one at the start, for example "
                'gym.make("pgprune/LLMPruning-v0", render_mode="ansi")'
            )
            return None
        draw = rendering.ansi if self.render_mode == "ansi" else rendering.rgb_array
        target = self.budget.target_share
        return tuple(draw(self.units.groups, row, target) for row in self._shares.cpu().numpy())

    def perplexity(
        self, mask: Array, windows: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """Computes the masked model's perplexity on text that no reward was computed on.

        The mask has no repair here, whatever the reward.

        Args:
            mask: the mask, (n,) of zeros and ones.
            windows: token ids (N, T) of each evaluation set; by default the problem's own.

        Returns:
            The perplexity on each set, by name.

        Raises:
            PruningError: a mask that is not one of the units.
        """
        (row,) = self._masks(mask[None], 1)
        sets = self.evaluation_windows if windows is None else windows
        lm = self.problem.lm
        return {name: cast(float, perplexity(lm, row, ids)) for name, ids in sets.items()}

    @cached_property
    def evaluation_windows(self) -> dict[str, Tensor]:
        """Token ids (N, T) of each evaluation set, read when they are first asked for.

        Where the problem does not say how many, the dense model is evaluated to find out.
        """
        data, lm = self.problem.data, self.problem.lm
        sets = evaluation_windows(data, self.problem.tokenizer)
        if not data.until_sure:
            return sets
        dense = partial(lm.losses, self.units.ones()[None])
        enough = {
            name: window_losses(dense, ids, until_sure=True).shape[1] for name, ids in sets.items()
        }
        return first_windows(sets, enough)

    def _losses(self, masks: Tensor) -> Tensor:
        """Computes the mean loss of each mask (K, n) on its next batch, (K,) float64."""
        if self.shared_batch:
            losses = self.evaluate(masks, self.stream.next())  # (K, B)
        else:
            batches = zip(masks.split(1), self.streams, strict=True)
            losses = torch.cat([self.evaluate(mask, stream.next()) for mask, stream in batches])
        return losses.double().mean(dim=1)

    def _observations(self, kept_shares: Tensor) -> Tensor:
        """Appends the target to kept shares (K, groups): (K, groups + 1) float32."""
        target = torch.full_like(kept_shares[:, :1], self.budget.target_share)
        return torch.cat([kept_shares, target], dim=1).float()

    def _masks(self, actions: Array, rows: int) -> Tensor:
        """Checks actions and returns masks, (rows, n) uint8 on the host."""
        shape = (rows, self.units.n)
        expected = f"actions must have shape {shape}, a 1 (keep) or 0 (prune) for each unit"
        masks = real_numbers(actions, expected)
        if masks.shape != shape:
            raise PruningError(f"{expected}; got shape {tuple(masks.shape)}")
        wrong = (masks != 0) & (masks != 1)
        if wrong.any():
            raise PruningError(f"{expected}; got the value {masks[wrong][0].item()}")
        return masks.to(torch.uint8)


def _described(
    values: dict[str, Tensor], out: Callable[[Tensor], Array], present: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Makes Gymnasium's vector info: the values, and for each key the rows that have it."""
    masks = {f"_{key}": present.copy() for key in values}
    return {key: out(value) for key, value in values.items()} | masks
