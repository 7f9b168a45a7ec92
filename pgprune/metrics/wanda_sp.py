"""Wanda-sp: scores units by weights times activations, layer by layer."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.observation import Observation
from pgprune.masking.units import Group
from pgprune.metrics.base import FINE, mean_absolute, metric, per_unit, square_sum
from pgprune.metrics.importance import Importance


@metric("wanda-sp", FINE)
def wanda_sp(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Scores inputs of output and down projections by weights times activations.

    The score of input j is mean_i |W_ij| sqrt(mean of x_j^2); a kv group adds up its head
    dimensions and averages over its query heads. Sequential: each layer is scored on the outputs
    of the pruned layers before it, and every layer keeps its own share.

    Source: An et al. 2024 (CASIA-IVA-Lab/FLAP) and the initialisation of
    ethanygao/backprop-free_LLM_pruning, for kv groups and any head size.
    """
    units = lm.units
    local = budget.local()
    scores = torch.zeros(units.n, dtype=torch.float64)
    mask = units.ones()
    for observation in lm.observe(mask, windows):
        for group, group_scores in layer_scores(lm, observation, windows.numel()):
            scores[group.start : group.stop] = group_scores
        # observe() reads the mask as it goes, so later layers see this one pruned. Rounding is per
        # layer, so their scores cannot change it any more.
        here = units.layer == observation.layer
        mask[here] = local.round(scores)[here]
    return Importance(scores, local=True)


def layer_scores(
    lm: MaskedLM, observation: Observation, tokens: int
) -> Iterator[tuple[Group, Tensor]]:
    """Yields the groups of an observed layer, each with Wanda's scores, (units,) on the CPU."""
    squares: dict[str, list[Tensor]] = {"heads": [], "channels": []}
    for attention_input, mlp_input in observation.inputs:
        squares["heads"].append(square_sum(attention_input))
        squares["channels"].append(square_sum(mlp_input))
    for group in (g for g in lm.units.groups if g.layer == observation.layer):
        column = mean_absolute(lm.projection(group.layer, group.projection))  # (inputs,)
        energy = torch.stack(squares[group.projection]).sum(0) / tokens  # mean of x^2
        yield group, per_unit(lm, group, column * energy.sqrt()).cpu()
