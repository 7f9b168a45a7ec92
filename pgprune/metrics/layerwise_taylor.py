"""Layerwise Taylor: scores whole blocks and layers by a Taylor expansion of the loss."""

from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.metrics.base import DEPTH, metric
from pgprune.metrics.importance import Importance, outer_units
from pgprune.metrics.llm_pruner import taylor_scores


@metric("layerwise-taylor", DEPTH, backward=True, options=("protect_layers",))
def layerwise_taylor(
    lm: MaskedLM, windows: Tensor, budget: Budget, seed: int, protect_layers: bool = True
) -> Importance:
    """Sums |w g| over all weights of a block or layer, norms included (Taylor+).

    g is the gradient of the mean loss. The first L/8 and last L/16 layers are kept (the 4 and 2 of
    32 of the original), as the criterion alone would remove the first layer of LLaMA-2-7B.

    Source: Kim et al. 2024, Shortened LLaMA (Nota-NetsPresso/shortened-llm), Taylor criterion.

    Options:
        protect_layers: whether to keep the outer layers.

    Raises:
        PruningError: the budget is less than what is protected.
    """
    protected = outer_units(budget, protect_layers)  # refuses before the backward passes
    return Importance(taylor_scores(lm, windows, "element-first"), protected=protected)
