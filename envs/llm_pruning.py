"""LLM pruning as an environment: an action is a mask, the reward is minus the masked LLM's loss.

``LLMPruningVectorEnv`` evaluates K masks a step on one model; ``LLMPruningEnv`` is one row of it.
"""

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from pgprune.envs import rendering
from pgprune.errors import PruningError
from pgprune.evaluation import perplexity
from pgprune.models import ModelConfig
from pgprune.problem import Problem, PruningConfig, make_problem
from pgprune.stream import DataConfig, evaluation_windows

Array = npt.NDArray[Any] | Tensor


class LLMPruningEnv(gym.Env[npt.NDArray[np.float32], npt.NDArray[np.int8]]):
    """Prune a frozen large language model: keep or remove each of its structures.

    ## Description

    Pruning as a reinforcement-learning problem, after "Efficient LLM structured pruning by policy
    gradient" (arXiv 2406.10576). The environment holds a frozen language model and an endless
    stream of calibration text. An action is a binary mask over the model's prunable units: groups
    of attention heads, MLP channels, whole blocks or whole layers. The reward says how well the
    masked model still predicts the next batch of text. The model itself is never changed.

    The mask does not change what comes next, so this is a contextual bandit with dense rewards:
    by default an episode is one step.

    ## Action Space

    `MultiBinary(n)`: one bit for each of the `n` units, 1 keeps and 0 prunes it. The `granularity`
    says what they are: `heads+channels` (groups of attention heads that share a key and value head,
    and MLP channels), `heads`, `channels`, `blocks` (attention and MLP blocks) or `layers`. Their
    order, groups and parameters are in `env.unwrapped.units`. Actions of any numeric type are taken
    if they hold only zeros and ones.

    An agent that does not know the budget uses `budget_penalty` or one of the wrappers
    `ScoreAction` (scores in, the budget's exact mask out) and `DensityAction` (how much each layer
    keeps of each kind). Whatever is taken as the final answer goes through
    `env.unwrapped.budget.round`.

    ## Observation Space

    `Box(0, 1, (groups + 1,), float32)`, where a group is the units of one kind in one layer:

    | Num             | Observation                                        | Min | Max |
    |-----------------|----------------------------------------------------|-----|-----|
    | 0 to groups - 1 | Share of the group's units that the last mask kept | 0   | 1   |
    | groups          | Share that the budget lets stay (the target)       | 0   | 1   |

    ## Rewards

    Minus the cross-entropy (in nats per token, the mean over the batch's sequences) of the masked
    model on the step's calibration batch, minus `budget_penalty` times the excess: how far the
    kept share is above the target. With `budget_penalty=0`, the default, this is the paper's
    reward.

    ## Starting State

    The unpruned model: all kept shares are one; the last entry is the target, as always.
    `reset(seed=s)` starts the calibration stream of seed `s` at its first batch; a reset without a
    seed goes on with the next batch. Every step takes one batch.

    ## Episode End

    The episode terminates after `horizon` steps, by default after one. It is never truncated.

    `info` of a step carries `loss` (the cross-entropy), `kept_shares` (of each group) and
    `excess`.

    ## Arguments

    ```python
    >>> import gymnasium as gym
    >>> import pgprune
    >>> env = gym.make("pgprune/LLMPruning-v0", granularity="blocks", prune_rate=0.25)
    >>> observation, info = env.reset(seed=0)
    >>> float(observation[-1])
    0.75
    >>> dense = env.unwrapped.units.ones().numpy()  # the mask that prunes nothing
    >>> observation, reward, terminated, truncated, info = env.step(dense)
    >>> reward == -info["loss"], info["excess"], terminated, truncated
    (True, 0.25, True, False)
    >>> env.close()

    ```

    | Parameter             | Type    | Default            | Description                         |
    |-----------------------|---------|--------------------|-------------------------------------|
    | `model`               | str     | `"builtin"`        | `builtin`, a hub id or a directory  |
    | `calibration`         | str     | `"builtin"`        | text of the rewards (`DataConfig`)  |
    | `evaluation`          | str     | `"builtin"`        | text of `perplexity`, likewise      |
    | `granularity`         | str     | `"heads+channels"` | what a unit is                      |
    | `channel_block`       | int     | `1`                | neighbouring channels in one unit   |
    | `prune_rate`          | float   | `0.4`              | share to remove                     |
    | `budget`              | str     | `"per-kind"`       | or `units` or `parameters`          |
    | `scope`               | str     | `"global"`         | `local`: a budget for each layer    |
    | `batch_size`          | int     | `8`                | sequences of a calibration batch    |
    | `sequence_length`     | int     | `128`              | tokens of a sequence                |
    | `calibration_samples` | int     | `None`             | revisit that many sequences only    |
    | `budget_penalty`      | float   | `0.0`              | weight of the excess in the reward  |
    | `horizon`             | int     | `1`                | steps of an episode                 |
    | `executor`            | str     | `"auto"`           | `masked` or `sliced` evaluation     |
    | `device`, `dtype`     | str     | `"auto"`           | of the model                        |
    | `seed`                | int     | `None`             | of the stream; 0 or the `problem`'s |
    | `render_mode`         | str     | `None`             | `ansi` or `rgb_array`: kept shares  |
    | `problem`             | Problem | `None`             | model, text and budget, loaded      |

    ## Vectorized environment

    `LLMPruningVectorEnv` evaluates `num_envs` masks a step on one model and, with
    `shared_batch=True` (the default), on one shared batch, in one call. `reset(seed=s)` then gives
    all rows the batch that a single environment seeded `s` gets; with `shared_batch=False`, row
    `i` gets the batches of a single environment seeded `s + i`.

    ```python
    >>> envs = gym.make_vec("pgprune/LLMPruning-v0", num_envs=3, granularity="blocks")
    >>> envs
    LLMPruningVectorEnv(pgprune/LLMPruning-v0, num_envs=3)
    >>> observations, infos = envs.reset(seed=0)
    >>> observations, rewards, *_ = envs.step(envs.action_space.sample())
    >>> rewards.shape
    (3,)
    >>> envs.close()

    ```

    ## Version History

    * v0: Initial version release.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}

    def __init__(self, render_mode: str | None = None, **kwargs: Any) -> None:
        """Builds the environment from the arguments of ``LLMPruningVectorEnv``, but one row.

        Args:
            render_mode: ``None``, ``ansi`` or ``rgb_array``.
            **kwargs: the arguments in the table of the class's documentation.

        Raises:
            PruningError: an argument that is not allowed.
        """
        self._row = LLMPruningVectorEnv(1, render_mode=render_mode, **kwargs)
        self.problem = self._row.problem
        self.units = self._row.units
        self.budget = self._row.budget
        self.stream = self._row.stream
        self.render_mode = render_mode
        self.action_space = self._row.single_action_space
        self.observation_space = self._row.single_observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Starts an episode from the unpruned model.

        Args:
            seed: starts the calibration stream of this seed; without one, the stream goes on.
            options: not used.

        Returns:
            The observation, (groups + 1,), and an empty info.
        """
        super().reset(seed=seed)
        observations, info = self._row.reset(seed=seed, options=options)
        return observations[0], info

    def step(
        self, action: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Evaluates a mask on the next calibration batch.

        Args:
            action: the mask, (n,) of zeros and ones.

        Returns:
            Observation, reward, terminated, truncated (never) and info.

        Raises:
            PruningError: an action that is not a mask of the units.
        """
        observations, rewards, ends, _, info = self._row.step(np.asarray(action)[None])
        ended = bool(ends[0])
        observation: Any = info["final_obs"][0] if ended else observations[0]
        row = {
            "loss": float(info["loss"][0]),
            "kept_shares": info["kept_shares"][0],
            "excess": float(info["excess"][0]),
        }
        return observation, float(rewards[0]), ended, False, row

    def render(self) -> str | rendering.Frame | None:
        """Draws the kept share by layer and kind of the last mask, as ``render_mode`` says."""
        frames = self._row.render()
        return None if frames is None else frames[0]

    def perplexity(
        self, mask: Array, windows: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """The masked model's perplexity: see ``LLMPruningVectorEnv.perplexity``."""
        return self._row.perplexity(mask, windows)


class LLMPruningVectorEnv(VectorEnv[Array, Array, Array]):
    """Prune a frozen large language model, K masks a step: see ``LLMPruningEnv``.

    All rows begin and end their episodes together, and a step that ends them resets them
    (``SAME_STEP``): it returns the next episode's first observations, and the last ones of the
    ended episode are in ``info["final_obs"]``. ``info`` carries the step's ``loss`` (K,),
    ``kept_shares`` (K, groups) and ``excess`` (K,), also in ``info["final_info"]`` if it was the
    episode's last.

    ``step`` takes NumPy arrays and returns NumPy arrays, or takes a tensor and returns tensors on
    the model's device, without sending the rewards through the host.
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
        model: str = "builtin",
        calibration: str = "builtin",
        evaluation: str = "builtin",
        granularity: str = "heads+channels",
        channel_block: int = 1,
        prune_rate: float = 0.4,
        budget: str = "per-kind",
        scope: str = "global",
        batch_size: int = 8,
        sequence_length: int = 128,
        calibration_samples: int | None = None,
        budget_penalty: float = 0.0,
        horizon: int = 1,
        shared_batch: bool = True,
        executor: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        seed: int | None = None,
        render_mode: str | None = None,
        problem: Problem | None = None,
    ) -> None:
        """Loads the model and the text, unless they come with ``problem``.

        ``num_envs`` is K, the masks of a step. ``shared_batch=False`` gives each row a calibration
        stream of its own. The other arguments are in the table in ``LLMPruningEnv``.

        Raises:
            PruningError: an argument that is not allowed.
        """
        self._check_arguments(num_envs, horizon, budget_penalty, render_mode)
        if problem is None:
            data = DataConfig(
                calibration=calibration,
                evaluation=evaluation,
                sequence_length=sequence_length,
                batch_size=batch_size,
                calibration_samples=calibration_samples,
            )
            pruning = PruningConfig(
                prune_rate=prune_rate,
                granularity=granularity,
                channel_block=channel_block,
                budget=budget,
                scope=scope,
                executor=executor,
            )
            config = ModelConfig(model=model, device=device, dtype=dtype)
            problem = make_problem(config, data, pruning, seed or 0, masks_per_step=num_envs)
        self.problem = problem
        self.units = problem.units
        self.budget = problem.budget
        self.num_envs = num_envs
        self.horizon = horizon
        self.budget_penalty = budget_penalty
        self.shared_batch = shared_batch
        self.render_mode = render_mode
        # Streams of its own, so that environments that share a problem do not disturb each other.
        first = problem.stream.seed if seed is None else seed
        rows = range(1 if shared_batch else num_envs)
        self.streams = tuple(problem.stream.fork(first + row) for row in rows)
        self.stream = self.streams[0]  # of all rows, or of the first

        groups = len(self.units.groups)
        self.single_action_space = spaces.MultiBinary(self.units.n)
        self.single_observation_space = spaces.Box(0, 1, (groups + 1,), np.float32)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._elapsed = 0  # steps of the current episode
        self._shares = torch.ones(num_envs, groups, dtype=torch.float64)  # kept, of the last masks

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Starts an episode of all rows from the unpruned model.

        Args:
            seed: starts the calibration stream of this seed (row ``i`` of ``seed + i`` with
                ``shared_batch=False``); without one, the streams go on.
            options: not used.

        Returns:
            The observations, (K, groups + 1), and an empty info.
        """
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
        masks = self._masks(actions, self.num_envs)  # (K, n)
        loss = self._losses(masks)  # (K,)
        excess = self.budget.excess(masks)  # (K,)
        self._shares = self.units.kept_shares(masks)  # (K, groups)
        self._elapsed += 1
        ended = self._elapsed >= self.horizon

        out = _fresh_tensor if isinstance(actions, Tensor) else _fresh_array
        every = np.ones(self.num_envs, dtype=np.bool_)
        step_info = {"loss": loss, "kept_shares": self._shares, "excess": excess}
        info = _described(step_info, out, every)
        observations = out(self._observations(self._shares))  # (K, groups + 1)
        if ended:
            info["final_obs"] = np.fromiter(observations, dtype=object)
            info["final_info"] = _described(step_info, out, every)
            info |= {"_final_obs": every.copy(), "_final_info": every.copy()}
            observations = out(self._observations(torch.ones_like(self._shares)))
            self._elapsed = 0
        rewards = out(-loss - self.budget_penalty * excess)
        flags = torch.full_like(loss, ended, dtype=torch.bool)
        return observations, rewards, out(flags), out(torch.zeros_like(flags)), info

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
        """The masked model's perplexity on text that no reward was computed on.

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
        """Token ids (N, T) of each evaluation set, read when they are first asked for."""
        return evaluation_windows(self.problem.data, self.problem.tokenizer)

    def _losses(self, masks: Tensor) -> Tensor:
        """The mean loss of each mask (K, n) on its next batch, (K,) float64."""
        lm = self.problem.lm
        if self.shared_batch:
            losses = lm.losses(masks, self.stream.next())  # (K, B)
        else:
            batches = zip(masks.split(1), self.streams, strict=True)
            losses = torch.cat([lm.losses(mask, stream.next()) for mask, stream in batches])
        return losses.double().mean(dim=1)

    def _observations(self, kept_shares: Tensor) -> Tensor:
        """Kept shares (K, groups) and the target as observations, (K, groups + 1) float32."""
        target = torch.full_like(kept_shares[:, :1], self.budget.target_share)
        return torch.cat([kept_shares, target], dim=1).float()

    def _masks(self, actions: Array, rows: int) -> Tensor:
        """Checked copies of masks, (rows, n) uint8 on the model's device."""
        shape = (rows, self.units.n)
        expected = f"actions must have shape {shape}, a 1 (keep) or 0 (prune) for each unit"
        if not isinstance(actions, Tensor):
            array = np.asarray(actions)
            if array.dtype.kind not in "biuf":
                raise PruningError(f"{expected}; got {array.dtype} entries")
            actions = torch.tensor(array)
        if actions.shape != shape:
            raise PruningError(f"{expected}; got shape {tuple(actions.shape)}")
        wrong = (actions != 0) & (actions != 1)
        if wrong.any():
            raise PruningError(f"{expected}; got the value {actions[wrong][0].item()}")
        return actions.detach().to(self.problem.lm.device, torch.uint8)

    def _check_arguments(
        self, num_envs: int, horizon: int, budget_penalty: float, render_mode: str | None
    ) -> None:
        for name, value in {"num_envs": num_envs, "horizon": horizon}.items():
            if not isinstance(value, int) or value < 1:
                raise PruningError(f"{name} {value!r} is not a whole number of at least 1")
        if not 0 <= budget_penalty < math.inf:
            raise PruningError(
                f"budget_penalty {budget_penalty!r} must be zero (the paper's reward) or positive"
            )
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise PruningError(
                f"render_mode {render_mode!r} is unknown; choose one of "
                f"{', '.join(self.metadata['render_modes'])}"
            )


def _fresh_tensor(values: Tensor) -> Array:
    return values.clone()


def _fresh_array(values: Tensor) -> Array:
    return values.numpy(force=True).copy()


def _described(
    values: dict[str, Tensor], out: Callable[[Tensor], Array], every: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Values of all rows as Gymnasium's vector info: each key with the rows that have it."""
    present = {f"_{key}": every.copy() for key in values}
    return {key: out(value) for key, value in values.items()} | present
