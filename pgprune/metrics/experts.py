"""Metrics of experts from where a router sends tokens: how many, and how much comes back."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.masking.channel_order import channel_energies
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.observation import Observation
from pgprune.metrics.base import EXPERTS, mean_absolute, metric, per_unit, square_sum
from pgprune.metrics.importance import Importance
from pgprune.models.experts import Experts
from pgprune.models.families import decoder_layers

Gains = Callable[[Experts, Any, Tensor, Tensor, int], Tensor]
"""(family's, experts, tokens (t, D) that are sent to one, router weights (t,), index) -> (t,)"""


@metric("reap", EXPERTS)
@torch.no_grad()
def reap(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Scores an expert by what it adds: router weight times the norm of its output.

    The score is the mean of g_e(x) |f_e(x)| over the tokens x that the router sends to the expert,
    with the weight g after renormalisation where the architecture has one (where it weighs inputs,
    of |f_e(g_e(x) x)|); 0 without tokens. Scores are of the dense model and compare within a
    layer. Heads are scored as by Wanda-sp, in the dense model, and so are channels, of all experts
    together.

    Source: Lasby et al. 2025, "REAP the Experts" (arXiv 2510.13999), Eq. 9.
    """
    scores, counts = _sums(lm, windows, _added)
    return Importance(scores / counts.clamp(min=1), local=True)


@metric("expert-frequency", EXPERTS)
@torch.no_grad()
def expert_frequency(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Scores an expert by the share of tokens that the router sends to it, else as ``reap``."""
    scores, _ = _sums(lm, windows, lambda *sent: torch.ones_like(sent[3]))
    experts = lm.units.kind == lm.units.kinds.index("experts")
    return Importance(scores / torch.where(experts, windows.numel(), 1), local=True)


def of_channels(lm: MaskedLM, windows: Tensor) -> Tensor:
    """Scores channels of experts by the size of what all of them add to the residual stream.

    Returns:
        Roots of sums of their energies (see ``channel_order``), and 0 of other units, (n,) float64.
    """
    scores = torch.zeros(lm.units.n, dtype=torch.float64)
    if not lm.units.multiply:
        return scores
    lm.meter.add(windows.numel())
    energies = channel_energies(lm.model, windows, lm.pass_tokens)
    for group in lm.units.groups:
        if group.kind == "channels" and group.stop > group.start:
            here = energies[group.layer].sum(0).view(group.stop - group.start, -1)
            scores[group.start : group.stop] = here.sum(1).sqrt()
    return scores


def _added(names: Experts, experts: Any, states: Tensor, weights: Tensor, index: int) -> Tensor:
    """Computes router weight times output norm for tokens (t, D) of one expert: (t,)."""
    if names.scored:  # the weight is in the inputs
        states, weights = states * weights[:, None], torch.ones_like(weights)
    return weights.double() * names.outputs(experts, states, index).double().norm(dim=1)


def _sums(lm: MaskedLM, windows: Tensor, gains: Gains) -> tuple[Tensor, Tensor]:
    """Sums gains of experts over their tokens.

    Returns:
        The sums, (n,) float64, with Wanda's scores of heads and channels; and the number of tokens
        of each expert, 1 of others, (n,) float64.
    """
    sums = of_channels(lm, windows)
    counts = torch.ones_like(sums)
    for seen in lm.observe(lm.units.ones(), windows):
        for group in (group for group in lm.units.groups if group.layer == seen.layer):
            here = slice(group.start, group.stop)
            if group.kind == "heads":
                squares = torch.stack([square_sum(x) for x in seen.attention_inputs()]).sum(0)
                column = mean_absolute(lm.projection(group.layer, "heads"))  # (inputs,)
                energy = (squares / windows.numel()).sqrt()
                sums[here] = per_unit(lm, group, column * energy).cpu()
            elif group.kind == "experts" and group.stop > group.start:
                counts[here] = 0
                for index, each in _routed(lm, seen, gains):
                    sums[group.start + index] += each.double().sum().cpu()
                    counts[group.start + index] += len(each)
    return sums, counts


def _routed(lm: MaskedLM, seen: Observation, gains: Gains) -> Iterator[tuple[int, Tensor]]:
    """Yields each expert of a layer with the gains of its tokens, chunk by chunk of the text."""
    paths = lm.family.experts
    assert paths is not None
    layer = decoder_layers(lm.model, lm.family)[seen.layer]
    router, experts = paths.router_of(layer), layer.get_submodule(paths.experts)
    for _, inputs in seen.inputs:
        states = inputs.flatten(0, 1)  # (b*T, D)
        weights, indices = paths.chosen(router, states)  # (b*T, k)
        for index in range(len(router.weight)):
            tokens, slots = torch.nonzero(indices == index, as_tuple=True)
            if len(tokens):
                sent = weights[tokens, slots]  # (t,)
                yield index, gains(paths, experts, states[tokens], sent, index)
