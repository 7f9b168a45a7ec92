"""Down projections of the experts of a mixture, and what they get, however a family stores them.

The stock module of experts computes these inputs, with its activation, clamps and biases, where
rows of the identity are in place of the down projection.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pgprune.models.experts import Experts

DOWN, BIAS = "down_proj", "down_proj_bias"
"""Parameters of a module of experts: (E, D, F) or (E, F, D); and (E, D), where it is there."""


def down_of(names: Experts, experts: Any, index: int) -> Tensor:
    """Returns the down projection of an expert, with its bias as a last column if it has one.

    Args:
        names: of the family.
        experts: the stock module.
        index: of the expert.

    Returns:
        (D, F) or (D, F + 1).
    """
    weight, bias = experts.get_parameter(DOWN)[index], getattr(experts, BIAS, None)
    weight = weight.T if _transposed(names) else weight
    return weight if bias is None else torch.cat([weight, bias[index][:, None]], dim=1)


def of_downs(
    names: Experts, experts: Any, downs: Mapping[int, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Lays out down projections by expert, as ``down_of`` returns them, and zeros for the others.

    Returns:
        What takes the place of the two parameters; None for a bias that is not there.
    """
    weight, bias = torch.zeros_like(experts.get_parameter(DOWN)), getattr(experts, BIAS, None)
    bias = None if bias is None else torch.zeros_like(bias)
    for index, down in downs.items():
        if bias is not None:
            down, bias[index] = down[:, :-1], down[:, -1]
        weight[index] = down.T if _transposed(names) else down
    return weight, bias


def down_inputs(
    names: Experts, experts: Any, index: int, states: Tensor, weights: Tensor
) -> Tensor:
    """Computes the inputs of an expert's down projection, as the router weighs its output.

    Args:
        names: of the family.
        experts: the stock module.
        index: of the expert.
        states: of the expert's tokens, (t, D).
        weights: of the router, (t,).

    Returns:
        Those by which ``down_of`` gives what the expert adds, (t, F) or (t, F + 1), in at least
        float32.
    """
    weights = weights[:, None]
    if names.scored:  # the weight is in the states
        states, weights = states * weights, torch.ones_like(weights)
    stored = experts.get_parameter(DOWN)
    outputs, width = stored.shape[:0:-1] if _transposed(names) else stored.shape[1:]
    parts = []
    with _one(experts, index) as own:
        if biased := BIAS in own:
            own[BIAS] = torch.zeros_like(own[BIAS])
        for first in range(0, width, outputs):  # as many at a time as there are outputs
            rows = stored.new_zeros(outputs, width)
            rows.diagonal(first).fill_(1)
            own[DOWN] = (rows.T.contiguous() if _transposed(names) else rows)[None]
            parts.append(names.outputs(experts, states, 0))
    inputs = torch.cat(parts, dim=1)[:, :width]
    inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    return F.pad(inputs, (0, int(biased)), value=1.0) * weights


def _transposed(names: Experts) -> bool:
    return names.inner[DOWN] == 1


@contextmanager
def _one(experts: Any, index: int) -> Iterator[dict[str, Tensor]]:
    """Gives a module of experts the parameters of one only, and yields these by name."""
    before = experts.num_experts, experts._parameters
    own = {name: part[index : index + 1] for name, part in experts._parameters.items()}
    experts.num_experts, experts._parameters = 1, own
    try:
        yield own
    finally:
        experts.num_experts, experts._parameters = before
