"""LLM-Pruner: scores units by a Taylor expansion of the loss in their weights."""

from torch import Tensor, nn

from pgprune.budget.budget import Budget
from pgprune.errors import check_choice
from pgprune.masking.masked_lm import MaskedLM
from pgprune.metrics.base import FINE, metric
from pgprune.metrics.gradients import WeightGradients
from pgprune.metrics.importance import Importance, outer_units
from pgprune.metrics.unit_sums import slice_sums, unit_sums

TAYLOR = ("element-first", "element-second", "element-mixed", "vector")


@metric("llm-pruner", FINE, backward=True, options=("taylor", "protect_layers"))
def llm_pruner(
    lm: MaskedLM,
    windows: Tensor,
    budget: Budget,
    seed: int,
    taylor: str = "element-first",
    protect_layers: bool = True,
) -> Importance:
    """Estimates the change of the loss when the weights of a unit become zero.

    With a weight w, its gradient g and the mean square f of the gradients of single windows (the
    diagonal of the empirical Fisher matrix), a weight's salience is |w g| (``element-first``, the
    released code's default), |w^2 f| (``element-second``) or |w g - w^2 f / 2|
    (``element-mixed``); ``vector`` takes |sum of w g| over each row of q, k, v and the expanding
    MLP projections and each column of the output and down projections. A unit adds up all its rows
    and columns. Units are ranked within their layer. The first L/8 and last L/16 layers stay
    whole (4 and 2 of 32), so the others lose more. Where a budget of scope local or uniform demands
    a share of every layer, none is protected.

    Source: Ma et al. 2023 (horseee/LLM-Pruner), block-wise. There, with grouped kv heads, a kv head
    h gets the scores of the query heads h, h + Hkv, ...; here of its own group. Biases count here;
    LLaMA, for which it was written, has none.

    Options:
        taylor: one of ``TAYLOR``.
        protect_layers: whether to keep the outer layers whole.

    Raises:
        PruningError: an unknown ``taylor``, or the budget is less than what is protected.
    """
    check_choice("taylor", taylor, TAYLOR)
    protected = outer_units(budget, protect_layers)  # refuses before the backward passes
    return Importance(taylor_scores(lm, windows, taylor), local=True, protected=protected)


def taylor_scores(lm: MaskedLM, windows: Tensor, taylor: str, mask: Tensor | None = None) -> Tensor:
    """Sums the salience of the weights of each unit, of any kind: (n,) float64.

    Args:
        lm: the frozen model.
        windows: calibration token ids, (N, T).
        taylor: one of ``TAYLOR``, see ``llm_pruner``.
        mask: the units that are left, (n,); None for all. Those of the others are zero.
    """
    squares = taylor in ("element-second", "element-mixed")
    gradients = WeightGradients(lm, windows, squares, mask=mask)

    def salience(parameter: nn.Parameter, dim: int | None) -> Tensor:
        weight = parameter.detach()
        # L(0) - L(w) = -w g + w^2 f / 2 + ..., with f for the curvature (empirical Fisher)
        slope = weight * gradients.mean[parameter]
        if taylor == "vector":
            return slice_sums(slope, dim).abs()
        if taylor == "element-first":
            return slice_sums(slope.abs(), dim)
        bend = weight.square() * gradients.square[parameter]
        return slice_sums((bend if taylor == "element-second" else slope - bend / 2).abs(), dim)

    return unit_sums(lm, salience)
