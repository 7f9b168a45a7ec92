"""Fits a repair: weights or biases of what a mask keeps, in closed form, without gradients."""

import math
from collections import Counter
from collections.abc import Callable, Container

import torch
from torch import Tensor

from pgprune.errors import PruningError, check_choice
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import Group
from pgprune.repair.damping import best_damped
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.mixture import Mixture, tokens_of_fit
from pgprune.repair.projection import KINDS, Projection
from pgprune.repair.refit import (
    best_in_turns,
    best_weights,
    mean_bias,
    of_kept,
    refit_layers,
)
from pgprune.repair.repair import Repair
from pgprune.repair.solution import Solution
from pgprune.utils.progress import note, phase

REPAIRS = ("bias", "least-squares", "alternating")
"""Every way to fit a repair, by name."""

DAMPING = 1e-2


@torch.no_grad()
def fit_repair(
    lm: MaskedLM,
    mask: Tensor,
    windows: Tensor,
    how: str,
    damping: float = DAMPING,
    held_out: Tensor | None = None,
    relative: bool = False,
) -> Repair:
    """Refits what a mask keeps, layer by layer on the activations of the pruned, repaired model.

    ``bias`` adds the mean contribution of pruned inputs: b + W mean(x), over the pruned x (FLAP,
    An et al. 2024). FLAP takes the means from the dense model; here they are those of the inputs
    that the projection gets in the pruned model.

    ``least-squares`` refits the weights, and the bias if there is one, so that the hidden states
    after each block are as close as possible to those of the dense model. The errors of earlier
    layers are part of this target, so blocks that lost nothing compensate for pruned ones. A
    projection that lost all its inputs keeps its bias only, if it has one. In a mixture, the down
    projections of kept experts are refitted on the tokens that reach them
    (``pgprune.repair.expert_descent``).

    ``alternating`` does the same, and refits the down and up projections of gated MLPs in turns
    (``pgprune.repair.gated_mlp``). It holds the activations of one MLP for all the text.

    Args:
        lm: the frozen model.
        mask: (n,) of zeros and ones, 1 keeps.
        windows: calibration token ids, (N, T).
        how: ``bias``, ``least-squares`` or ``alternating``.
        damping: of the last two, relative to the mean square of an input: how strongly weights are
            drawn to the dense ones.
        held_out: more windows (M, T), which choose the damping of each projection, or that it keeps
            its dense weights (``pgprune.repair.damping``); None for ``damping`` in all.
        relative: whether the error of a token counts relative to its hidden state in the dense
            model, which the next norm divides by; without effect on ``bias``.

    Returns:
        The repair, in the model's number format.

    Raises:
        PruningError: an unknown ``how``, a mask over other units, no text, a damping below 0 or
            not finite, activations that overflow, singular second moments without damping.
    """
    check_choice("repair", how, REPAIRS)
    lm.units.check_mask(mask)
    _check_damping(damping)

    chosen = Counter[float]()  # projections by their damping

    def solve_mixture(mixture: Mixture) -> Solution:
        if mixture.held_out is None:
            return mixture.fit(damping)
        best, solution = mixture.best_fit()
        chosen[best] += 1
        return solution

    def solve(projection: Projection) -> Solution:
        if projection.intact:
            return {}
        if isinstance(projection, Mixture):
            return solve_mixture(projection)
        best = None if projection.held_out is None else best_damped(projection)
        if best is not None:
            chosen[best.damping] += 1
            if math.isinf(best.damping):
                return {}
        if how == "alternating" and _alternates(projection):
            return best_in_turns(projection, damping if best is None else best.damping)
        if best is not None:
            return of_kept(projection, best.weight, best.bias)
        return best_weights(projection, projection.least_squares_of_kept(damping))

    with phase(f"repair {how}"):
        if how == "bias":
            return _refit(lm, mask, windows, _bias, "projection")
        if lm.family.experts is not None:
            lm.meter.add(tokens_of_fit(windows, held_out))
        repair = _refit(lm, mask, windows, solve, "stream", held_out, relative, mixtures=True)
    if chosen:
        words = (f"{each:g} in {n:,}" for each, n in sorted(chosen.items()))
        note(
            f"dampings of {chosen.total():,} projections, inf for dense weights: {', '.join(words)}"
        )
    return repair


@torch.no_grad()
def choose_and_refit(
    lm: MaskedLM,
    windows: Tensor,
    choose: Callable[[LeastSquares, Group], Tensor],
    target: str = "projection",
    damping: float = DAMPING,
    alternating: bool = False,
    kinds: Container[str] = KINDS,
) -> tuple[Tensor, Repair]:
    """Prunes and refits projection by projection, each on what the refitted ones before it give.

    Args:
        lm: the frozen model; its units are heads, channels or both.
        windows: calibration token ids, (N, T).
        choose: which units of a group to keep, (units,) bool.
        target: as in ``refit_layers``.
        damping: as in ``fit_repair``.
        alternating: whether gated MLPs are refitted in turns, as by that repair.
        kinds: of projections that are pruned and refitted; the others stay as they are.

    Returns:
        The mask, (n,) uint8, and the repair.

    Raises:
        PruningError: as ``fit_repair``.
    """
    _check_damping(damping)
    mask = lm.units.ones()
    lm.meter.add(alternating * windows.numel())  # layers run once more, for the gates

    def solve(projection: Projection) -> Solution:
        group = projection.group
        if group is None or projection.kind not in kinds:
            return {}
        problem = projection.least_squares(damping)  # of all inputs, as any may be kept
        mask[group.start : group.stop] = choose(problem, group).to(mask)
        if alternating and _alternates(projection):
            del problem  # frees its matrices before the MLP's problem is built
            return best_in_turns(projection, damping)
        return best_weights(projection, problem)

    repair = _refit(lm, mask, windows, solve, target)
    return mask, repair


def _bias(projection: Projection) -> Solution:
    """Fits a bias where units are pruned."""
    return {} if projection.kept.all() else mean_bias(projection)


def _alternates(projection: Projection) -> bool:
    """Tells if a projection has kept channels of a gated MLP."""
    gated = projection.lm.family.gated and projection.kind == "channels"
    return gated and bool(projection.kept.any())


def _refit(
    lm: MaskedLM,
    mask: Tensor,
    windows: Tensor,
    solve: Callable[[Projection], Solution],
    target: str,
    held_out: Tensor | None = None,
    relative: bool = False,
    mixtures: bool = False,
) -> Repair:
    """Runs ``refit_layers`` and collects the solutions, on the CPU in the model's number format."""
    repair = Repair()

    def solve_and_collect(projection: Projection) -> Solution:
        solution = solve(projection)
        for kind, (weight, bias) in solution.items():
            if weight is not None:
                repair.weights[projection.seen.layer, kind] = weight.to("cpu", lm.dtype)
            if bias is not None:
                repair.biases[projection.seen.layer, kind] = bias.to("cpu", lm.dtype)
        return solution

    refit_layers(lm, mask, windows, solve_and_collect, target, held_out, relative, mixtures)
    return repair


def _check_damping(damping: float) -> None:
    if not 0 <= damping < float("inf"):
        raise PruningError(f"damping {damping!r} is not a number from 0; try {DAMPING}")
