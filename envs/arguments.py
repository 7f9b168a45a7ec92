"""Checks the numbers that environments are made with, and those that they are given."""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgprune.errors import PruningError, first_line

MOST_MASKS = 2**16
"""Masks of a step, at most: far more than a run evaluates in all."""


def check_arguments(num_envs: int, horizon: int, seed: int, budget_penalty: float) -> None:
    """Checks the masks of a step, the steps of an episode, the seed and the weight of the excess.

    Raises:
        PruningError: one is no number, or outside its range.
    """
    ranges = {"num_envs": (num_envs, 1, MOST_MASKS), "horizon": (horizon, 1, 2**31 - 1)}
    for name, (value, least, most) in (ranges | {"seed": (seed, 0, 2**64 - 1)}).items():
        if not isinstance(value, Integral) or not least <= value <= most:
            raise PruningError(f"{name} {value!r} is not a whole number from {least} to {most:,}")
    if not isinstance(budget_penalty, Real) or not 0 <= budget_penalty < math.inf:
        raise PruningError(
            f"budget_penalty {budget_penalty!r} must be zero (the paper's reward) or positive"
        )


def real_numbers(values: Any, expected: str) -> Tensor:
    """Returns numbers that a caller gives as a tensor on the host, of their own type.

    Args:
        values: an array, a tensor or nested sequences.
        expected: what they must be, for the sentence that refuses others.

    Raises:
        PruningError: they are not real numbers, or a tensor without values of its own.
    """
    if isinstance(values, Tensor):
        if (
            values.is_complex()
            or values.device.type == "meta"
            or values.layout is not torch.strided
        ):
            kind = f"{values.dtype} on {values.device}, {values.layout}"
            raise PruningError(f"{expected}; got a tensor of {kind}")
        return values.detach().cpu()  # checks on the device would wait for it
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of different lengths
        raise PruningError(f"{expected} ({first_line(error)})") from error
    if array.dtype.kind not in "biuf":
        raise PruningError(f"{expected}; got {array.dtype} entries")
    if array.dtype.itemsize > 8:  # long doubles, which torch lacks
        array = array.astype(np.float64)
    return torch.tensor(array.astype(array.dtype.newbyteorder("=")))
