"""Bonsai: regresses the worth of units from the losses of random sub-models, round by round."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.metrics.base import FINE, finite, metric
from pgprune.metrics.importance import Importance, ranks
from pgprune.metrics.wanda_sp import layer_scores
from pgprune.repair.ridge import ridge
from pgprune.utils.progress import track

MASKS, WINDOWS, FRACTION = 200, 8, 0.05

Prior = Callable[[MaskedLM, Tensor, Tensor], Tensor]
"""(model, mask (n,), windows (N, T)) -> scores (n,) of the units in the pruned model."""


def wanda_prior(lm: MaskedLM, mask: Tensor, windows: Tensor) -> Tensor:
    """Computes Wanda's score of every unit on a pruned model.

    Args:
        lm: the frozen model.
        mask: the units that are left, (n,); a layer's mask acts only on the layers after it.
        windows: calibration token ids, (N, T).

    Returns:
        (n,) float64.
    """
    prior = torch.zeros(lm.units.n, dtype=torch.float64)
    for observation in lm.observe(mask, windows):
        for group, scores in layer_scores(lm, observation, windows.numel()):
            prior[group.start : group.stop] = scores
    return prior


@metric("bonsai", FINE, random=True, by_rate=True)
def bonsai(
    lm: MaskedLM,
    windows: Tensor,
    budget: Budget,
    seed: int,
    masks: int = MASKS,
    evaluated_on: int = WINDOWS,
    fraction: float = FRACTION,
    prior_of: Prior = wanda_prior,
) -> Importance:
    """Scores units in the order in which Bonsai prunes them, see ``pgprune.methods.bonsai``.

    Options:
        masks: sub-models of a round, in antithetic pairs.
        evaluated_on: windows to evaluate them on, or all where there are fewer.
        fraction: share of the units that a round prunes.
        prior_of: scores all units of a pruned model.
    """
    units = lm.units
    generator = torch.Generator().manual_seed(seed)
    mask, scores = units.ones(), torch.zeros(units.n, dtype=torch.float64)
    rates = rates_of_rounds(budget.prune_rate, fraction)
    for index, rate in enumerate(track(rates, "rounds")):
        prior = prior_of(lm, mask, windows)
        candidates = find_candidates(units, mask, prior, fraction)
        tried = sample_pairs(units, mask, prior, candidates, masks // 2, generator)
        chosen = torch.randperm(len(windows), generator=generator)[:evaluated_on]
        losses = _losses(lm, tried, windows[chosen])
        # loss = c - sum_i w_i m_i over the candidates' bits m_i, so w is the slope of -loss.
        worth = ridge(tried[:, candidates].double(), -losses, together=2)
        alive = mask.bool()
        # Candidates rank in [0, 1) by worth, all other units above them by their prior.
        scores[alive] = 1 + ranks(units, prior)[alive]
        scores[candidates] = worth.argsort().argsort().double() / len(worth)
        mask = budget.with_rate(rate).round(scores)
        # Units pruned now end below all that are pruned later, so one rounding gives every round.
        scores[alive & (mask == 0)] -= 2.0 * (len(rates) - index)
    return Importance(scores)


def rates_of_rounds(prune_rate: float, fraction: float) -> list[float]:
    """Returns the prune rate after each round."""
    rounds = math.ceil(prune_rate / fraction - 1e-9)  # 0.3 / 0.1 is a little above 3
    return [min((index + 1) * fraction, prune_rate) for index in range(rounds)]


def find_candidates(units: PruningUnits, mask: Tensor, prior: Tensor, fraction: float) -> Tensor:
    """Finds the units that a round may prune: the lowest that are left of each layer and kind.

    Args:
        units: of the model.
        mask: the units that are left, (n,).
        prior: (n,).
        fraction: share of the dense layer's units that a round prunes.

    Returns:
        Flat indices: of each layer and kind twice the share, and at least 2, if they are left.
    """
    candidates = []
    for group in units.groups:
        left = group.start + torch.nonzero(mask[group.start : group.stop]).flatten()
        count = 2 * max(1, round(fraction * (group.stop - group.start)))
        candidates.append(left[prior[left].argsort(stable=True)[:count]])
    return torch.cat(candidates).sort().values


def sample_pairs(
    units: PruningUnits,
    mask: Tensor,
    prior: Tensor,
    candidates: Tensor,
    pairs: int,
    generator: torch.Generator,
) -> Tensor:
    """Draws pairs of sub-models that lose complementary parts of each layer's candidates.

    Args:
        units: of the model.
        mask: the units that are left, (n,).
        prior: (n,); units with low priors are often lost together.
        candidates: flat indices.
        pairs: number of pairs.
        generator: of the CPU.

    Returns:
        (2 * pairs, n) uint8, the masks of a pair next to each other.
    """
    masks = mask.repeat(pairs, 2, 1)  # (pairs, 2, n)
    for group in units.groups:
        inside = (candidates >= group.start) & (candidates < group.stop)
        here = candidates[inside]  # (c,)
        left = slice(group.start, group.stop)
        largest = prior[left][mask[left].bool()].amax() if len(here) else prior.new_zeros(())
        weight = (largest - prior[here]).clamp(min=1e-9 * float(largest) + 1e-300)
        # The largest of log(weight) + Gumbel noise are a draw without replacement, with
        # probabilities in proportion to the weights (the Gumbel top-k trick).
        uniform = torch.rand(pairs, len(here), generator=generator, dtype=torch.float64)
        order = (weight.log() - (-uniform.log()).log()).argsort(dim=1, descending=True)
        drawn = order.argsort(dim=1) <= len(here) // 2  # (pairs, c), one more than half
        coin = torch.rand(pairs, 1, generator=generator) < 0.5
        lost = drawn ^ coin  # (pairs, c): the coin says which mask loses the larger half
        masks[:, 0, here] = (~lost).to(torch.uint8)
        masks[:, 1, here] = lost.to(torch.uint8)
    return masks.flatten(0, 1)


def _losses(lm: MaskedLM, masks: Tensor, windows: Tensor) -> Tensor:
    """Computes the mean loss of each sub-model, (K,) float64."""
    batches = track(windows.split(8), "sub-models", unit="batches")
    losses = torch.cat([lm.losses(masks, batch).cpu() for batch in batches], dim=1)
    return finite(losses).mean(1)
