"""Olica: prunes value dimensions and channels by the norms of weights times inputs."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.observation import Observation
from pgprune.masking.units import Group, PruningUnits
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.metrics.base import per_unit, square_sum
from pgprune.metrics.importance import ranks
from pgprune.models.families import decoder_layers, linear_at
from pgprune.repair.projection import wide

_RATIO = 3  # of what queries and keys lose to what values and outputs lose, theirs for LLaMA


@method("olica", ("values+channels",), budgets=("parameters",))
def olica(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Prunes equally many value dimensions in all kv heads, and as many channels in all layers.

    A unit scores the sum of the norms of its rows and columns, with each weight times the root of
    the mean square of its input. Each layer is scored on what the pruned layers before it give. At
    a prune rate p each kv head loses the share p / 2 of its value dimensions, and channels lose the
    rest; where that is more than there are, value dimensions lose more.

    This is the part of Olica that value dimensions and channels can hold. As there, values and
    outputs are rotated before, so that few dimensions carry most: ``make_problem`` does it for
    value dimensions, by their second moments. Left out, because no export has such layers: queries
    and keys as products of two thin matrices, and two thin matrices beside six MLPs for the error
    that is left there (linear calibration), whose place ``--repair least-squares`` can take.
    Channels lose what queries and keys would have lost. The code also keeps the hundredth of the
    channels with the lowest scores; here they go first. A value dimension averages its columns
    over the query heads, and the last unit that the budget allows is kept.

    Published perplexities, WikiText-2 in windows of 128 tokens: LLaMA-2-7B 18.54 with 30 % of the
    parameters removed; LLaMA-7B 15.35, 16.69 and 19.83 with 20, 25 and 33 %.

    Source: He & Lin 2025 (Olica, arXiv 2506.08436; BetterTMrR/LLM-Olica).

    Returns:
        The mask.

    Raises:
        PruningError: activations that overflow.
    """
    units, lm, budget = problem.units, problem.lm, problem.budget
    pruned = _dimensions_to_prune(units, budget.prune_rate)
    mask, scores = units.ones(), torch.zeros(units.n, dtype=torch.float64)
    for seen in lm.observe(mask, windows):
        for group in (group for group in units.groups if group.layer == seen.layer):
            scores[group.start : group.stop] = norms(lm, seen, group).cpu()
        order = _order(units, scores, pruned)
        # How many units later layers keep does not depend on their scores.
        here = units.layer == seen.layer
        mask[here] = budget.round(order)[here]
    return Pruned(mask)


def norms(lm: MaskedLM, seen: Observation, group: Group) -> Tensor:
    """Adds up the norms of the rows and columns of each unit, times inputs: (units,).

    Args:
        lm: the model.
        seen: the layer.
        group: value dimensions or channels of that layer.

    Raises:
        PruningError: the activations overflow.
    """
    of_values = group.kind == "values"
    paths = (lm.family.value,) if of_values else lm.family.expand
    columns = seen.attention_inputs() if of_values else (mlp for _, mlp in seen.inputs)
    # Sums in place of means: a factor that all have in common.
    inner = _energy(seen.until(paths[0]))  # (D,); first: known attention would skip the values
    outer = _energy(columns)  # (inputs,), of the output or down projection
    last = wide(lm.projection(seen.layer, group.projection))  # (D, inputs)
    total = per_unit(lm, group, (last.square().sum(0) * outer.to(last)).sqrt())
    layer = decoder_layers(lm.model, lm.family)[seen.layer]
    for path in paths:
        weight = wide(linear_at(layer, path).weight)  # (rows, D)
        rows = (weight.square() @ inner.to(weight)).sqrt()
        total += rows.view(len(total), -1).sum(1).to(total.device)
    if not bool(total.isfinite().all()):
        raise PruningError(
            f"the activations of layer {seen.layer} overflow or are not numbers; choose dtype "
            "float32 or bfloat16"
        )
    return total


def _energy(chunks: Iterable[Tensor]) -> Tensor:
    """Sums squares over the tokens of all chunks: (inputs,) float64."""
    return torch.stack([square_sum(chunk.view(1, -1, chunk.shape[-1])) for chunk in chunks]).sum(0)


def _dimensions_to_prune(units: PruningUnits, rate: float) -> int:
    """Counts the value dimensions that each kv head loses."""
    size = units.shapes[0].head_dim
    values = units.kind == units.kinds.index("values")
    cost, channels = int(units.cost[values].sum()), int(units.cost[~values].sum())
    least = (rate * units.prunable - channels) / cost  # with all channels pruned
    return min(size, max(int(2 * rate / (1 + _RATIO) * size), math.ceil(least * size)))


def _order(units: PruningUnits, scores: Tensor, pruned: int) -> Tensor:
    """Orders units for the budget: values that stay (2), channels by rank, values that go (-1)."""
    order = ranks(units, scores)
    for group in (group for group in units.groups if group.kind == "values"):
        shape = units.shapes[group.layer]
        heads = scores[group.start : group.stop].view(shape.kv_heads, shape.head_dim)
        place = heads.argsort(dim=1, stable=True).argsort(dim=1)  # 0 for the lowest
        order[group.start : group.stop] = torch.where(place < pruned, -1.0, 2.0).flatten()
    return order
