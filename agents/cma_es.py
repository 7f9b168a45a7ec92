"""CMA-ES (Hansen & Ostermeier 2001) by the library pycma: a search without gradients.

It searches among the offsets of every (layer, kind), as the recommended agent does, or among
offsets of every single unit. Masks of a step share one batch, and only the order of their losses
counts.

A checkpoint holds the losses that the library was told, because its own state would be a pickle.
All it does follows from them and from the seed: a resume replays them.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from pgprune.agents.base import Agent, load_package, lowest
from pgprune.agents.offsets import masks_of, scores_of
from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits
from pgprune.metrics import Importance
from pgprune.utils.options import Config, option

PACKAGE = ("cma", "search")  # and the extra that installs it
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CMAESConfig(Config):
    """CMA-ES: how widely it searches."""

    cma_population: int = option(10, "cma-es: masks per step", minimum=4)
    cma_deviation: float = option(
        0.3, "cma-es: initial spread of the offsets, in standard deviations of the scores", above=0
    )

    @property
    def masks(self) -> int:
        """Masks of a step."""
        return self.cma_population


class CMAES(Agent):
    """CMA-ES, with the methods of Stable-Baselines3.

    Args:
        env: the vector environment; its ``num_envs`` is the population.
        config: how widely it searches.
        importance: of the units, or the name of a metric; ``auto`` is ``stream-error`` for heads
            and channels.
        seed: of the masks and of the calibration stream.
        action: ``density``, an offset for each (layer, kind), or ``score``, one for each unit,
            whose covariance is then diagonal.

    Attributes:
        scores: of the units, which offsets are added to, (n,) float64.
        mean: of the offsets, (groups,) or (n,) float64.
        losses: of the masks of all steps, (steps, K) float64.

    Raises:
        PruningError: the config or the action does not fit the environment, or pycma is absent.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        config: CMAESConfig | None = None,
        importance: Importance | str = "auto",
        seed: int = 0,
        action: str = "density",
    ) -> None:
        super().__init__(env, config.masks if config else None, seed)
        self.config = config or CMAESConfig(cma_population=env.num_envs)
        self.action = action
        units = self.budget.units
        self.check_units(units, action)
        self._dimensions = dimensions(action, units)
        self._cma = load_package("cma-es", *PACKAGE)
        self._search = self._new_search(seed)
        self.scores = scores_of(self.env, importance, seed)
        self.losses = torch.empty(0, self.config.cma_population, dtype=torch.float64)

    @classmethod
    def check_units(cls, units: PruningUnits, action: str | None) -> None:
        """Makes sure that the search has two dimensions or more, and not too many.

        Raises:
            PruningError: it does not.
        """
        super().check_units(units, action)
        if (count := dimensions(action, units)) < 2:
            raise PruningError(
                f"cma-es needs 2 dimensions or more, but there is {count} to choose; take a finer "
                "--granularity or another agent"
            )

    @property
    def mean(self) -> Tensor:
        """Returns the mean of the offsets, (groups,) or (n,) float64."""
        return torch.tensor(self._search.mean, dtype=torch.float64)

    def mask(self) -> Tensor:
        """Returns the mask of the mean offsets, (n,) uint8 on the CPU."""
        return masks_of(self.mean[None], self.scores, self.budget)[0]

    def draw(self) -> Tensor:
        """Draws one mask from the search distribution, (n,) uint8."""
        sampler = copy.deepcopy(self._search.sm)  # so that drawing does not disturb the search
        sampler.randn = _normal(self._other_generator)
        # x = m + sigma D y with y ~ N(0, C), as the library samples
        step = self._search.sigma * (self._search.sigma_vec * np.asarray(sampler.sample(1)[0]))
        return masks_of(self.mean[None] + torch.tensor(step), self.scores, self.budget)[0]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns all that a resume needs: tensors, and values that JSON can hold."""
        tensors = {"scores": self.scores, "losses": self.losses, "mean": self.mean}
        return tensors, {name: getattr(self, name) for name in self.saved_values}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Continues from what ``state`` returned, by replaying the saved losses.

        Raises:
            PruningError: the state is over another number of units or of another population, or
                the library does not come to the same mean again.
        """
        self._check_saved(tensors, "scores")
        losses, population = tensors["losses"], self.config.cma_population
        if losses.shape[1] != population or len(tensors["mean"]) != self._dimensions:
            raise PruningError(
                f"the saved agent has a population of {losses.shape[1]} in {len(tensors['mean'])} "
                f"dimensions, this one {population} in {self._dimensions}; take the config and "
                "action it was saved with"
            )
        self.scores, self.losses = tensors["scores"], losses
        # Replay: with the same seed, ``ask`` returns the offsets of the saved run. Telling it the
        # saved losses restores covariance, paths and random generator bit for bit.
        self._search = self._new_search(values["seed"])
        for row in losses:
            self._tell(self._search.ask(), row)
        # Another machine or version may round differently, which the mean would show.
        if not torch.equal(self.mean, tensors["mean"]):
            raise PruningError(
                "cma-es does not reach the saved mean again, so this is another machine, number of "
                "threads or version of the package cma than it was saved with; resume there"
            )
        for name in self.saved_values:
            setattr(self, name, values[name])

    def _learn_step(self, total_steps: int, total_timesteps: int) -> dict[str, float]:
        """Asks for offsets, evaluates their masks on one batch, and tells the losses."""
        offsets = self._search.ask()
        masks = masks_of(torch.tensor(np.array(offsets)), self.scores, self.budget)  # (K, n)
        losses = self._losses(masks)  # (K,)
        self._can_learn(losses.isfinite(), least=_least(losses))
        self._tell(offsets, losses)
        self.losses = torch.cat([self.losses, losses[None]])
        self.steps += 1
        deviation = float(self._search.stds.mean())
        own = {"rollout/best_loss": lowest(losses), "train/deviation": deviation}
        return self._figures(losses, own)

    def _tell(self, offsets: list[Numbers], losses: Tensor) -> None:
        """Tells the losses (K,) of offsets; those that are not finite are the worst."""
        finite = losses.isfinite()
        if int(finite.sum()) >= _least(losses):
            worst = float(losses[finite].max())
            # CMA-ES uses only the order of losses, so any larger number stands for the worst.
            self._search.tell(offsets, torch.where(finite, losses, worst + 1).tolist())

    def _new_search(self, seed: int) -> Any:
        """Makes the library's search, before its first step."""
        options = {
            "popsize": self.config.cma_population,
            # A full covariance of 10,000 units would have 10^8 entries.
            "CMA_diagonal": self.action == "score",
            "randn": _normal(torch.Generator().manual_seed(seed)),
            "seed": np.nan,  # leaves numpy's own generator alone
            "verbose": -9,
        }
        start = np.zeros(self._dimensions)  # zero offsets give the metric's mask
        return self._cma.CMAEvolutionStrategy(start, self.config.cma_deviation, options)


def dimensions(action: str | None, units: PruningUnits) -> int:
    """Returns the number of offsets: one for each unit, or for each (layer, kind)."""
    return units.n if action == "score" else len(units.groups)


def _least(losses: Tensor) -> int:
    """Returns how many losses must be finite: the library learns from the better half."""
    return len(losses) // 2


def _normal(generator: torch.Generator) -> Callable[..., Numbers]:
    """Returns a source of standard normal numbers as the library calls it."""
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).numpy()
