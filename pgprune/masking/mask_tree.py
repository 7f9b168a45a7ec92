"""Many masks on the same batch: what they share is computed once.

Masks that agree on the first layers have the same hidden states there, so masks are evaluated as
the tree of their layers, depth first: a layer runs once for all masks that agree on it and on all
layers before it. As a policy becomes sure of itself, its masks agree more and more.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from pgprune.masking.executors import LayerCall
from pgprune.masking.layer_mask import LayerMask

Run = Callable[[LayerCall, Tensor, LayerMask], Tensor]
Masks = Sequence[Sequence[LayerMask]]
"""For each mask, its part in each layer."""


def distinct(masks: Tensor) -> tuple[Tensor, list[int]]:
    """Removes duplicates of masks (K, n) and sorts them: equal first units make neighbours.

    Returns:
        Each mask once, (k, n) bool on the host, and the row there of each of the K masks.
    """
    # unique() sorts rows, so rows with a common beginning are neighbours.
    rows, where = torch.unique(masks.to("cpu", torch.bool), dim=0, return_inverse=True)
    return rows, where.tolist()


def run_tree(
    run: Run, calls: Sequence[LayerCall], states: Tensor, masks: Masks, first: int = 0
) -> list[Tensor]:
    """Computes the states after the last layer under each mask.

    Args:
        run: an executor that runs one mask at a time.
        calls: all decoder layers.
        states: before the layer ``first``, (1, B, T, D).
        masks: for each mask, its part in each layer. The masks are in the order of ``distinct`` and
            agree on all layers before ``first``.
        first: the layer to begin with.

    Returns:
        (1, B, T, D) for each mask.
    """
    for index in range(first, len(calls)):
        branches = _branches(masks, index)
        if len(branches) > 1:  # each branch runs this layer and all later ones by itself
            trees = (run_tree(run, calls, states, branch, index) for branch in branches)
            return [after for tree in trees for after in tree]
        states = run(calls[index], states, masks[0][index])
    return [states]  # the masks that are left agree on all layers


def _branches(masks: Masks, layer: int) -> Sequence[Masks]:
    """Groups neighbouring masks that agree on a layer."""
    if len(masks) == 1:
        return (masks,)  # no key to compute
    return [list(branch) for _, branch in groupby(masks, key=lambda mask: mask[layer].key)]
