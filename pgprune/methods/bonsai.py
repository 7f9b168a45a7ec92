"""Bonsai: what units are worth, regressed from the losses of random sub-models, round by round."""

import math

import torch
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.masked_lm import MaskedLM
from pgprune.methods.base import MethodConfig, Pruned
from pgprune.metrics import Importance
from pgprune.metrics.base import mean_absolute, per_unit, square_sum
from pgprune.metrics.protection import ranks
from pgprune.problem import Problem
from pgprune.ridge import ridge
from pgprune.units import PruningUnits

_WORST = 1e3  # nats, in place of losses that are not finite


def bonsai(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Prunes a twentieth of the units at a time: those that a regression finds useless.

    A round takes the prior of all units that are left (Wanda's score on the pruned model) and
    makes the lowest of each layer and kind its candidates, twice as many as it prunes of them.
    Sub-models come in pairs: one loses half of the candidates (and one more) of all layers and
    kinds at once, drawn without replacement with probability proportional to how far the prior is
    from the layer's largest; the other loses the rest. Their losses on a few windows are regressed
    on which candidates they keep, and the candidates of the smallest slopes are pruned. Rounds end
    at the budget: each is the budget's rounding at its rate. Nothing is cut out before the end.

    Theirs are prior, candidates, sampling and rounds. Ours: the regression is a ridge in closed
    form, whose penalty cross-validation over pairs chooses. Theirs runs Adam from zero over a grid
    of penalties, step sizes and batch sizes and stops early, again by cross-validation: shrinkage
    as well, but slow, and dependent on the grid. The target is the loss; theirs is the perplexity,
    whose outliers rule a least-squares fit. Sub-models are judged on one batch by default, theirs
    on 32 windows, so that 50 % costs about an agent's 2,000 timesteps. A round prunes its share of
    whatever the budget counts, theirs of parameters; numbers of candidates refer to the dense
    layer, so that they suffice at any rate; which sub-model of a pair loses the larger half is a
    coin's choice for each layer and kind, without which the regression could not see what all
    candidates of a layer are worth together; and a kv group is one unit.

    Source: Dery et al. 2024, Everybody Prune Now (ldery/Bonsai).

    Args:
        problem: the frozen model and the budget; its units must be heads, channels or both.
        windows: calibration token ids, (N, T).
        seed: of sub-models and windows.
        config: ``bonsai_masks``, ``bonsai_windows``, ``bonsai_fraction``.

    Returns:
        The mask, and scores in whose order units were pruned.

    Raises:
        PruningError: the units are blocks or layers, or sub-models are to be judged on more
            windows than there are.
    """
    _check(problem.units, windows, config)
    units, budget = problem.units, problem.budget
    generator = torch.Generator().manual_seed(seed)
    mask, scores = units.ones(), torch.zeros(units.n, dtype=torch.float64)
    rounds = math.ceil(budget.prune_rate / config.bonsai_fraction - 1e-9)
    for index in range(rounds):
        prior = wanda_prior(problem.lm, mask, windows)
        candidates = find_candidates(units, mask, prior, config.bonsai_fraction)
        masks = sample_pairs(units, mask, prior, candidates, config.bonsai_masks // 2, generator)
        chosen = torch.randperm(len(windows), generator=generator)[: config.bonsai_windows]
        losses = _losses(problem.lm, masks, windows[chosen])
        worth = ridge(masks[:, candidates].double(), -losses, together=2)
        alive = mask.bool()
        scores[alive] = 1 + ranks(units, prior)[alive]  # above candidates
        scores[candidates] = worth.argsort().argsort().double() / len(worth)
        rate = min((index + 1) * config.bonsai_fraction, budget.prune_rate)
        mask = budget.with_rate(rate).round(scores)
        scores[alive & (mask == 0)] -= 2.0 * (rounds - index)  # below all that are pruned later
    return Pruned(mask, Importance(scores, local=False, mask=mask), notes={"rounds": rounds})


def wanda_prior(lm: MaskedLM, mask: Tensor, windows: Tensor) -> Tensor:
    """Wanda's score of every unit on a pruned model.

    Args:
        lm: the frozen model.
        mask: what is left, (n,); a layer's own mask acts on the layers after it only.
        windows: calibration token ids, (N, T).

    Returns:
        (n,) float64.
    """
    prior = torch.zeros(lm.units.n, dtype=torch.float64)
    for observation in lm.observe(mask, windows):
        squares: dict[str, list[Tensor]] = {"heads": [], "channels": []}
        for attention_input, mlp_input in observation.inputs:
            squares["heads"].append(square_sum(attention_input))
            squares["channels"].append(square_sum(mlp_input))
        for group in (g for g in lm.units.groups if g.layer == observation.layer):
            column = mean_absolute(lm.projection(group.layer, group.kind))  # (inputs,)
            energy = torch.stack(squares[group.kind]).sum(0) / windows.numel()  # mean of x^2
            score = per_unit(lm, group, column * energy.sqrt())
            prior[group.start : group.stop] = score.cpu()
    return prior


def find_candidates(units: PruningUnits, mask: Tensor, prior: Tensor, fraction: float) -> Tensor:
    """The units that a round may prune: of each layer and kind the lowest that are left.

    Args:
        units: of the model.
        mask: what is left, (n,).
        prior: (n,).
        fraction: share of the dense layer's units that a round prunes.

    Returns:
        Flat indices, twice the share of each layer and kind and at least 2 where so many are left.
    """
    found = []
    for group in units.groups:
        left = group.start + torch.nonzero(mask[group.start : group.stop]).flatten()
        count = 2 * max(1, round(fraction * (group.stop - group.start)))
        found.append(left[prior[left].argsort(stable=True)[:count]])
    return torch.cat(found).sort().values


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
        mask: what is left, (n,).
        prior: (n,); the lower two units are, the likelier they are lost together.
        candidates: flat indices.
        pairs: how many.
        generator: of the CPU.

    Returns:
        (2 * pairs, n) uint8, the two of a pair beside each other.
    """
    masks = mask.repeat(pairs, 2, 1)  # (pairs, 2, n)
    for group in units.groups:
        inside = (candidates >= group.start) & (candidates < group.stop)
        here = candidates[inside]  # (c,)
        left = slice(group.start, group.stop)
        largest = prior[left][mask[left].bool()].amax() if len(here) else prior.new_zeros(())
        weight = (largest - prior[here]).clamp(min=1e-9 * float(largest) + 1e-300)
        # The largest of log(weight) + Gumbel noise are a draw without replacement.
        uniform = torch.rand(pairs, len(here), generator=generator, dtype=torch.float64)
        order = (weight.log() - (-uniform.log()).log()).argsort(dim=1, descending=True)
        drawn = order.argsort(dim=1) <= len(here) // 2  # (pairs, c), one more than half
        coin = torch.rand(pairs, 1, generator=generator) < 0.5
        lost = drawn ^ coin
        masks[:, 0, here] = (~lost).to(torch.uint8)
        masks[:, 1, here] = lost.to(torch.uint8)
    return masks.flatten(0, 1)


def _losses(lm: MaskedLM, masks: Tensor, windows: Tensor) -> Tensor:
    """Mean loss of each sub-model, (K,) float64."""
    losses = torch.cat([lm.losses(masks, batch).cpu() for batch in windows.split(8)], dim=1)
    return losses.double().nan_to_num(_WORST, _WORST).mean(1)


def _check(units: PruningUnits, windows: Tensor, config: MethodConfig) -> None:
    if not {"heads", "channels"}.issuperset(units.kinds):
        raise PruningError(
            f"bonsai prunes heads and channels, not granularity {units.granularity}; choose "
            "heads+channels, heads or channels"
        )
    if len(windows) < config.bonsai_windows:
        raise PruningError(
            f"bonsai_windows {config.bonsai_windows} is more than the {len(windows)} calibration "
            "windows; ask for fewer, or for more method_samples"
        )
