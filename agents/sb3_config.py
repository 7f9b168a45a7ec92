"""What the configs of the agents by Stable-Baselines3 have in common."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from pgprune.utils.options import Config


@dataclass(frozen=True)
class Sb3Config(Config):
    """Options of one algorithm; the names of its fields begin with its own.

    Attributes:
        name: of the algorithm.
        package: that it is in.
        reference: whether one mask of each step is that of the start.
        figures: of the library's log that a run shows.
    """

    name: ClassVar[str]
    package: ClassVar[str] = "stable_baselines3"
    reference: ClassVar[bool] = False
    figures: ClassVar[tuple[str, ...]]

    @property
    def masks(self) -> int:
        """Masks of a step, the start's included where there is a reference."""
        return getattr(self, f"{self.name}_masks")

    @property
    def learning_rate(self) -> float:
        """Step size at the beginning; it falls to 0 over the run."""
        return getattr(self, f"{self.name}_learning_rate")

    def algorithm(self, env: Any, start: Tensor, rate: Any, seed: int) -> Any:
        """The library's algorithm on a ``PruningVecEnv``.

        Args:
            env: a ``PruningVecEnv``.
            start: logits or means to begin with, (d,).
            rate: step size, by how much of the run is left.
            seed: of everything random.
        """
        raise NotImplementedError
