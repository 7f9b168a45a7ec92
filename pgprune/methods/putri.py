"""Putri: prunes channels and refits the others layer by layer, then prunes single kv groups."""

import math

import torch
from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.errors import PruningError
from pgprune.masking.units import Group
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.methods.two_ssp import STAGE_TWO_TOKENS, split_rate
from pgprune.metrics.importance import ranks
from pgprune.metrics.layerwise_ppl import losses_without
from pgprune.repair.fit import choose_and_refit
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.repair import repaired


@method("putri", ("heads+channels",), budgets=("parameters",))
def putri(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Prunes MLP channels and refits the others, layer by layer, then kv groups by the loss.

    Stage 1 goes from layer to layer on what the refitted layers before it give. It keeps equally
    many channels in each, those of the highest cost to remove (``removal_costs``), and refits the
    down projection to give what the dense weights give for its inputs. Stage 2 evaluates the
    refitted model without each kv group alone, on the first 2,048 tokens, and removes as many of
    the best as a layer has; it repeats this as often as 2SSP would remove a block of attention
    (``two_ssp.split_rate``).

    Known from its abstract and its released code, whose default score and second stage these are.
    There, too, query heads that share keys and values are removed together. Theirs: 256 windows of
    2,048 tokens of C4, and no damping unless a matrix is singular. Ours: least squares are damped
    a little, and fit the bias too where there is one; the last unit that the budget allows is kept,
    so layers may differ by one channel; stage 2 ends where the budget is met. Left out: variants
    of the code that refit the attention output, or compare predictions in place of losses.

    Published perplexities, WikiText-2, 50 % of the parameters removed: Qwen3-14B 18.19 (2SSP
    23.53), Llama-3.1-8B 39.25 (2SSP 34.75).

    Source: Putri 2026 (arXiv 2605.18331; Coello-dev/Putri), after Sandri et al. 2025 (2SSP).

    Returns:
        The mask, the refitted weights, and in the notes the kv groups removed, as (layer, index).

    Raises:
        PruningError: a budget by layer, or the repair fails.
    """
    if problem.budget.scope != "global":
        raise PruningError(
            f"method putri removes kv groups where they are missed least, so with scope "
            f"{problem.budget.scope} no layer would keep its share; leave out --scope"
        )
    kept_channels = _kept_channels(problem)

    def choose(squares: LeastSquares, group: Group) -> Tensor:
        kept = squares.everything()
        costs = removal_costs(squares)
        kept[costs.argsort(stable=True)[: squares.units - kept_channels[group.layer]]] = False
        return kept

    mask, repair = choose_and_refit(problem.lm, windows, choose, kinds=("channels",))
    with repaired(problem.lm, repair):
        removed = _remove_kv_groups(problem, mask, windows)
    return Pruned(mask, repair=repair, notes={"removed_kv_groups": removed})


def removal_costs(squares: LeastSquares) -> Tensor:
    """Scores the units of a projection: (units,) float64.

    Input j costs sum_i m_i W_ij^2 / U_jj^2, with m_i the sum of squares of output i and U the upper
    Cholesky factor of the inverse of the inputs' second moments. As in SparseGPT, 1 / U_jj^2 is
    what is left of input j when the inputs after it make up for it.
    """
    outputs = (squares.weight @ squares.gram * squares.weight).sum(1)  # m, (outputs,)
    inverse = squares.inverse(squares.everything())
    factor = torch.linalg.cholesky(inverse, upper=True)  # U, (inputs, inputs)
    costs = outputs @ squares.weight.square() / factor.diagonal().square()  # (inputs,)
    return costs.view(-1, squares.width).sum(1)


def _kept_channels(problem: Problem) -> list[int]:
    """Counts the channel units that each layer keeps, with heads removed as 2SSP's blocks are."""
    units = problem.units
    heads = units.kind == units.kinds.index("heads")
    # Which units of a layer are kept does not matter here, so any scores give the counts.
    scores = ranks(units, torch.zeros(units.n))
    scores[heads] = 2
    blocks = split_rate(units, problem.budget.prune_rate).attention_blocks
    scores[heads.nonzero().flatten()[: blocks * _heads_of_a_layer(problem)]] = -1
    counts = units.kept_counts(problem.budget.round(scores)[None])[0]  # (groups,)
    pairs = zip(units.groups, counts.tolist(), strict=True)
    return [int(count) for group, count in pairs if group.kind == "channels"]


def _remove_kv_groups(problem: Problem, mask: Tensor, windows: Tensor) -> list[tuple[int, int]]:
    """Removes kv groups from a mask (n,), in place, until the budget is met."""
    units, (pool,) = problem.units, problem.budget.pools
    heads = units.kind == units.kinds.index("heads")
    few = windows[: math.ceil(STAGE_TWO_TOKENS / windows.shape[1])]
    removed: list[tuple[int, int]] = []

    def over() -> bool:
        kept = int(pool.cost[mask.bool()].sum())
        return kept > pool.capacity or not problem.budget.allows(mask)

    while over():
        left = (heads & mask.bool()).nonzero().flatten()
        losses = losses_without(problem.lm, mask, list(left[:, None]), few)
        for unit in left[losses.argsort(stable=True)[: _heads_of_a_layer(problem)]].tolist():
            if over():
                mask[unit] = 0
                group = units.groups[int(units.group[unit])]
                removed.append((group.layer, unit - group.start))
    return removed


def _heads_of_a_layer(problem: Problem) -> int:
    """Counts the kv groups of an average layer, which are those of each in a dense model."""
    shapes = problem.units.shapes
    return max(1, round(sum(shape.kv_heads for shape in shapes) / len(shapes)))
