"""Many masks on the same batch: what they share is computed once.

Masks that agree on the first layers have the same hidden states there, so masks are evaluated as
the tree of their layers, depth first: a layer runs once for all masks that agree on it and on all
layers before it. As a policy becomes sure of itself, its masks agree more and more.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pgprune.executors import Fill, LayerCall, LayerMask
from pgprune.families import Family
from pgprune.units import PruningUnits

Run = Callable[[LayerCall, Tensor, LayerMask], Tensor]


def distinct(masks: Tensor) -> tuple[Tensor, list[int]]:
    """Different masks in an order in which those that agree on the first units are neighbours.

    Args:
        masks: (K, n) of zeros and ones, any dtype and device.

    Returns:
        Each mask once, (k, n) bool on the host, and for each of the K masks its row in it.
    """
    rows, where = torch.unique(masks.to("cpu", torch.bool), dim=0, return_inverse=True)
    return rows, where.tolist()


def run_tree(
    run: Run,
    calls: Sequence[LayerCall],
    states: Tensor,
    masks: Tensor,
    units: PruningUnits,
    family: Family,
    fill: Fill | None = None,
    first: int = 0,
) -> list[Tensor]:
    """The states after the last layer under each of some masks.

    Args:
        run: an executor that runs one mask after another.
        calls: all decoder layers.
        states: before the layer ``first``, (1, B, T, D).
        masks: (k, n) as ``distinct`` orders them, which agree on all layers before ``first``.
        units: the units of the model.
        family: of the model.
        fill: what pruned inputs are; None for zero.
        first: the layer to begin with.

    Returns:
        (1, B, T, D) for each mask.
    """
    for index in range(first, len(calls)):
        branches = _branches(masks, units, index)
        if len(branches) > 1:
            return [
                after
                for branch in branches
                for after in run_tree(run, calls, states, branch, units, family, fill, index)
            ]
        states = run(calls[index], states, LayerMask(masks[:1], units, index, family, fill))
    return [states]


def _branches(masks: Tensor, units: PruningUnits, layer: int) -> tuple[Tensor, ...]:
    """Neighbouring masks that agree on a layer, together."""
    if len(masks) == 1:
        return (masks,)
    groups = units.groups[layer * len(units.kinds) : (layer + 1) * len(units.kinds)]
    part = masks[:, groups[0].start : groups[-1].stop]  # (k, units of the layer)
    starts = torch.nonzero((part[1:] != part[:-1]).any(dim=1)).flatten() + 1
    return masks.tensor_split(starts)
