"""2SSP: prunes channels by the norm of their activations, then whole attention blocks."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.masking.units import PruningUnits
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.metrics.importance import ranks
from pgprune.metrics.layerwise_ppl import losses_without

_ALPHA = 1.5  # of the paper: the larger MLPs are, the fewer attention blocks are removed
STAGE_TWO_TOKENS = 2048
"""Tokens that attention is removed by: the one window of the original."""


class Split(NamedTuple):
    """A prune rate, divided: attention blocks to remove, and the share of channels to keep."""

    attention_blocks: int
    kept_channels: float


@method("2ssp", ("heads+channels",), budgets=("parameters",))
def two_ssp(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Prunes MLP channels in all layers, then whole attention blocks.

    Stage 1 scores a channel by the mean over windows of the Euclidean norm over tokens of its
    activation, and keeps equally many in each layer. Stage 2 removes attention blocks one by one,
    each time the one without which the pruned model's loss on the first 2,048 tokens is least.
    Their number follows from the rate p: N = round(L p^(M/A/1.5)) for M and A parameters of the
    channels and the heads of a layer. The rest of the rate falls on the channels.

    Source: Sandri et al. 2025 (2SSP). Here a block is all heads of a layer, so its norm and the
    bias of its output projection stay; the last unit that the budget allows is kept, so layers may
    differ by one channel.

    Returns:
        The mask, and in the notes the layers without attention, in order of removal.
    """
    units, lm = problem.units, problem.lm
    split = split_rate(units, problem.budget.prune_rate)
    heads = units.kind == units.kinds.index("heads")
    # One order for the budget's rounding: attention that stays (2), channels by rank (0 to 1],
    # attention that is removed (-1).
    scores = torch.full((units.n,), 2.0, dtype=torch.float64)
    norms = torch.zeros(units.n, dtype=torch.float64)
    norms[~heads] = _channel_norms(problem, windows)
    scores[~heads] = ranks(units, norms)[~heads]
    mask = (heads | (scores > 1 - split.kept_channels)).to(torch.uint8)
    few = windows[: math.ceil(STAGE_TWO_TOKENS / windows.shape[1])]
    left = list(range(units.layers))
    removed: list[int] = []
    for _ in range(split.attention_blocks):
        parts = [torch.nonzero(heads & (units.layer == layer)).flatten() for layer in left]
        best = int(losses_without(lm, mask, parts, few).argmin())
        removed.append(left.pop(best))
        mask[parts[best]] = 0
        scores[parts[best]] = -1
    return Pruned(problem.budget.round(scores), notes={"removed_attention": removed})


def split_rate(units: PruningUnits, prune_rate: float) -> Split:
    """Divides a prune rate between attention blocks and channels.

    The number of attention blocks is the formula's. It is moved to the nearest possible number
    where it is more than the rate asks for, or where all the channels are less than the rest.

    Args:
        units: heads and channels of all layers.
        prune_rate: share of their parameters to remove.
    """
    shapes = units.shapes
    attention = sum(s.kv_heads * s.kv_group_cost for s in shapes) / len(shapes)
    mlp = sum(s.channels * s.channel_cost for s in shapes) / len(shapes)
    to_prune = prune_rate * units.prunable
    blocks = round(len(shapes) * prune_rate ** (mlp / attention / _ALPHA))
    least = math.ceil((to_prune - mlp * len(shapes)) / attention)  # with all channels pruned
    most = math.floor(to_prune / attention)  # with no channel pruned
    blocks = max(min(blocks, most), least, 0)
    channels = max(0.0, to_prune - blocks * attention)
    return Split(blocks, 1 - min(1.0, channels / (mlp * len(shapes))))


def _channel_norms(problem: Problem, windows: Tensor) -> Tensor:
    """Averages over windows each channel's norm over tokens, in all layers: (channel units,)."""
    units, parts = problem.units, []
    for observation in problem.lm.observe(units.ones(), windows):
        total = torch.zeros(units.shapes[observation.layer].channels, dtype=torch.float64)
        for _, mlp_inputs in observation.inputs:
            total += mlp_inputs.double().norm(dim=1).sum(0).cpu()  # over (b, T, channels)
        parts.append(total.view(-1, units.channel_block).sum(1) / len(windows))
    return torch.cat(parts)
