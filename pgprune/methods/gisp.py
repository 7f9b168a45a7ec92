"""GISP: prunes units in many small steps, by first-order scores that compare across layers."""

import torch
from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.metrics.base import FINE
from pgprune.metrics.bonsai import rates_of_rounds
from pgprune.metrics.importance import Importance, protected_units
from pgprune.metrics.llm_pruner import taylor_scores
from pgprune.utils.progress import track


@method("gisp", FINE, budgets=("parameters", "units", "per-kind"), backward=True)
def gisp(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Prunes the units whose weights matter least to the loss to first order, a few in each step.

    A weight w with the gradient g of the mean calibration loss matters |w g|. A unit adds up its
    rows and columns, and the sum is divided by a size (``normalised_scores``), so that heads and
    channels of all layers compare. The lowest are pruned up to the rate of the step, and the next
    step scores what is left in the pruned model. No weight changes. A lower rate ends after fewer
    of the same steps, so its mask keeps what a higher rate keeps; only where a kv group no longer
    fits into the budget, channels that were pruned before may return.

    The score, the sizes, the protected layers (the first tenth and the last one) and the steps
    (0.7 of the structures in 112) are those of the released code. Theirs: each step reads 2,000
    windows of 256 tokens of C4; query heads that share keys and values are pruned singly, and these
    are not scored; a step is a share of the structures, and the rate is read off the parameters.
    Ours: a kv group is one unit, with its keys and values; a step is a share of what the budget
    counts, by default parameters. Left out: the margin between right and wrong answers as the loss,
    for multiple choice.

    Published perplexities, WikiText-2 in windows of 128 tokens, 40 % of the parameters removed
    (Wanda-sp on the same windows): LLaMA-2-7B 34.54 (51.85), LLaMA-2-13B 26.56 (32.91), LLaMA-3-8B
    46.10 (81.67), Mistral-7B-v0.3 34.31 (55.41).

    Source: Wang et al. 2026 (GISP, arXiv 2510.18030; uncc-efficient-ai/GISP).

    Options: ``gisp_fraction``, ``protect_layers``.

    Returns:
        The mask, and scores that order units as they were pruned.

    Raises:
        PruningError: the budget is less than what is protected, or the gradients overflow.
    """
    units, budget = problem.units, problem.budget
    first, last = (units.layers // 10, 1) if config.protect_layers else (0, 0)
    protected = protected_units(budget, first, last)  # refuses before the backward passes
    rates = rates_of_rounds(budget.prune_rate, config.gisp_fraction)
    mask, importance = units.ones(), Importance(torch.zeros(units.n).double(), protected=protected)
    for step, rate in enumerate(track(rates, "steps")):
        left = mask.bool()
        worth = normalised_scores(problem.lm, windows, mask)[left]
        places = 1 + worth.argsort(stable=True).argsort().double()
        # In (step, step + 1], so that what is pruned later ranks above what is pruned now.
        importance.scores[left] = step + places / len(worth)
        mask &= importance.mask(budget.with_rate(rate))
    return Pruned(importance.mask(budget), importance, notes={"steps": len(rates)})


def normalised_scores(lm: MaskedLM, windows: Tensor, mask: Tensor) -> Tensor:
    """Computes the sum of |w g| of each unit over its size: (n,) float64, 0 for pruned units.

    The size of a kv group or a value dimension is the number of its weights. That of a channel is
    the width of the MLP times the number of its projections, as in the released code, and not the
    number of its weights.

    Args:
        lm: the frozen model.
        windows: calibration token ids, (N, T).
        mask: the units that are left, (n,).

    Raises:
        PruningError: the gradients overflow.
    """
    scores = taylor_scores(lm, windows, "element-first", mask)
    if not bool(scores.isfinite().all()):
        raise PruningError(
            "the gradients of the loss overflow or are not numbers; choose dtype float32 or "
            "bfloat16"
        )
    for group in lm.units.groups:
        shape = lm.units.shapes[group.layer]
        size = shape.value_cost if group.kind == "values" else shape.kv_group_cost
        if group.kind == "channels":
            size = (3 if lm.family.gated else 2) * shape.channels * lm.units.channel_block
        scores[group.start : group.stop] /= size
    return scores
