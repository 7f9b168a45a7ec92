"""A private copy of the global random generators, for libraries that draw from them."""

import random
from typing import Any

import numpy as np
import torch


class Randomness:
    """Swaps in private states of the generators of Python, NumPy and PyTorch (CPU).

    Args:
        seed: of these states.

    Example:
        >>> ours = Randomness(seed=1)
        >>> with ours:
        ...     first = torch.rand(2)
        >>> _ = torch.rand(5)  # outside, which does not disturb ours
        >>> with ours:
        ...     second = torch.rand(2)
        >>> with Randomness(seed=1):
        ...     torch.equal(torch.rand(2), first) and torch.equal(torch.rand(2), second)
        True
    """

    def __init__(self, seed: int) -> None:
        outside = _states()
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        self._inside = _states()
        _set(outside)

    def __enter__(self) -> None:
        self._outside = _states()
        _set(self._inside)

    def __exit__(self, *_: object) -> None:
        self._inside = _states()
        _set(self._outside)


def _states() -> tuple[Any, Any, Any]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set(states: tuple[Any, Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
