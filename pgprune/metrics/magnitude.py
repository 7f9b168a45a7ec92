"""Magnitude: scores units by the size of their weights, without any text."""

from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.metrics.base import EXPERTS, FINE, metric
from pgprune.metrics.importance import Importance, outer_units
from pgprune.metrics.unit_sums import slice_sums, unit_sums


@metric("magnitude", options=("protect_layers",))
def magnitude(
    lm: MaskedLM, windows: Tensor, budget: Budget, seed: int, protect_layers: bool = True
) -> Importance:
    """Sums |w| over the weights of a unit.

    Heads, values, channels and experts are compared within a layer and every layer keeps its
    share, as by Wanda-sp. Blocks and layers are compared with each other, and those of the first
    L/8 and last L/16 layers are kept (Magnitude+ of Kim et al. 2024,
    Nota-NetsPresso/shortened-llm).

    Options:
        protect_layers: whether to keep the outer blocks and layers.

    Raises:
        PruningError: the budget is less than what is protected.
    """
    fine = lm.units.granularity in FINE + EXPERTS
    protected = None if fine else outer_units(budget, protect_layers)
    scores = unit_sums(lm, lambda parameter, dim: slice_sums(parameter.detach().abs(), dim))
    return Importance(scores, local=fine, protected=protected)
