"""LLM pruning as an environment: an action is a mask, the reward is minus the masked LLM's loss.

This class is one row of ``vector.py``, which computes the steps. It documents both.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from torch import Tensor

from pgprune.envs import rendering
from pgprune.envs.arguments import real_numbers
from pgprune.envs.vector import Array, LLMPruningVectorEnv


class LLMPruningEnv(gym.Env[npt.NDArray[np.float32], npt.NDArray[np.int8]]):
    """Prune a frozen large language model: keep or remove each of its structures.

    ## Description

    Pruning as a reinforcement-learning problem, after "Bypass Back-propagation" (arXiv
    2406.10576). The environment holds a frozen language model and an endless
    stream of calibration text. An action is a binary mask over the model's prunable units: groups
    of attention heads, MLP channels, whole blocks or whole layers. The reward says how well the
    masked model still predicts the next batch of text. The model itself is never changed.

    The mask does not change what comes next, so this is a contextual bandit with dense rewards:
    by default an episode is one step.

    ## Action Space

    `MultiBinary(n)`: one bit for each of the `n` units, 1 keeps and 0 prunes it. The `granularity`
    says what they are: `heads+channels` (groups of attention heads that share a key and value head,
    and MLP channels), `values+channels` (value dimensions of these groups, and MLP channels),
    `heads`, `values`, `channels`, `blocks` (attention and MLP blocks) or `layers`. Their order,
    groups and parameters are in `env.unwrapped.units`. Actions of any numeric type are taken if
    they hold only zeros and ones.

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

    With `reward="repaired"` the cross-entropy is that of the masked model after a bias repair: the
    pruned inputs of the attention output and MLP down projections are not zero but their means in
    the dense model, measured once on the first calibration windows. With `granularity="blocks"` a
    pruned block adds its mean output; `layers` have no repaired reward.

    With `loss="kl"` the cross-entropy gives way to the Kullback-Leibler divergence of the masked
    model's next-token predictions from those of the dense model, whose 512 most likely tokens are
    told apart and all others count as one. Each batch takes one more pass, of the dense model. The
    dense mask has the reward 0. Perplexities stay those of the text.

    ## Starting State

    The unpruned model: all kept shares are one; the last entry is the target, as always.
    `reset(seed=s)` starts the calibration stream of seed `s` at its first batch; a reset without a
    seed continues with the next batch. Every step takes one batch.

    ## Episode End

    The episode terminates after `horizon` steps, by default after one. It is never truncated.

    `info` of a step carries `loss` (cross-entropy or KL divergence), `kept_shares` (of each group)
    and `excess`.

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
    | `gguf_file`           | str     | `None`             | the GGUF file of that directory     |
    | `family`              | str     | `"known"`          | or `auto`: find where layers are    |
    | `calibration`         | str     | `"builtin"`        | text of the rewards (`DataConfig`)  |
    | `evaluation`          | str     | `"builtin"`        | text of `perplexity`, likewise      |
    | `granularity`         | str     | `"heads+channels"` | what a unit is                      |
    | `rotate_values`       | bool    | `True`             | values: change of basis first       |
    | `channel_block`       | int     | `1`                | neighbouring channels in one unit   |
    | `prune_rate`          | float   | `0.4`              | share to remove                     |
    | `target`              | tuple   | `None`             | in its place: `("memory<=6GB",)`    |
    | `keep_at_least`       | tuple   | `None`             | of each layer: `("heads=0.5",)`     |
    | `keep_layers`         | str     | `None`             | that stay whole: `"0,1,-1"`         |
    | `budget`              | str     | `"per-kind"`       | or `units` or `parameters`          |
    | `scope`               | str     | `"auto"`           | `global`, `local` or `uniform`      |
    | `round_to`            | int     | `1`                | channels of a layer: multiples of N |
    | `batch_size`          | int     | `8`                | sequences of a calibration batch    |
    | `sequence_length`     | int     | `128`              | tokens of a sequence                |
    | `calibration_samples` | int     | `None`             | revisit this many sequences only    |
    | `evaluation_windows`  | int     | `None`             | of each text; None: until sure      |
    | `evaluation_lengths`  | tuple   | `None`             | of their windows; None: as above    |
    | `reward`              | str     | `"plain"`          | or `repaired`: pruned at the mean   |
    | `loss`                | str     | `"cross-entropy"`  | or `kl`: to dense predictions       |
    | `reward_precision`    | str     | `"highest"`        | or `medium`: faster on some CPUs    |
    | `budget_penalty`      | float   | `0.0`              | weight of the excess in the reward  |
    | `horizon`             | int     | `1`                | steps of an episode                 |
    | `executor`            | str     | `"auto"`           | `masked` or `sliced` evaluation     |
    | `kernels`             | str     | `"plain"`          | or `triton`: of `sliced`, on a GPU  |
    | `compile_head`        | bool    | `False`            | compile head and loss, for a GPU    |
    | `device`, `dtype`     | str     | `"auto"`           | of the model                        |
    | `device_map`          | str     | `None`             | `auto`: spread over all devices     |
    | `attn_implementation` | str     | `"sdpa"`           | attention kernel of transformers    |
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
        self.judge = self._row.judge
        self.render_mode = render_mode
        self.action_space = self._row.single_action_space
        self.observation_space = self._row.single_observation_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Starts an episode from the unpruned model, and the stream of a seed if one is given."""
        super().reset(seed=seed)
        observations, info = self._row.reset(seed=seed, options=options)
        return observations[0], info

    def step(
        self, action: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Evaluates a mask (n,) of zeros and ones on the next calibration batch.

        Raises:
            PruningError: an action that is not a mask of the units.
        """
        if isinstance(action, Tensor):
            action = real_numbers(action, "an action must be a mask").double().numpy()
        row_of_one: Any = [action]  # the row checks it
        observations, rewards, ends, _, info = self._row.step(row_of_one)
        ended = bool(ends[0])
        # With SAME_STEP the row's observation is already that of the next episode.
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
        """Computes the masked model's perplexity: see ``LLMPruningVectorEnv.perplexity``."""
        return self._row.perplexity(mask, windows)
