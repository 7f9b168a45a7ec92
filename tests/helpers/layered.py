"""A model whose layers differ, which the scores of its units do not tell: what agents must find."""

import torch

from helpers.tiny import AdditiveLM, toy_units
from pgprune.budget.budget import Budget
from pgprune.masking.units import PruningUnits
from pgprune.metrics import Importance

UNITS = toy_units(layers=4, kv_heads=4, channels=20)


def layered(units: PruningUnits = UNITS) -> AdditiveLM:
    """Later layers are worth more."""
    within = torch.rand(units.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layers = torch.tensor([group.layer for group in units.groups], dtype=torch.float64)
    return AdditiveLM(units, within * 4.0 ** layers[units.group])


def importance(lm: AdditiveLM) -> Importance:
    """Knows how units compare within a layer and nothing of how layers do."""
    scores = lm.worth.log()
    for group in lm.units.groups:
        scores[group.start : group.stop] -= scores[group.start : group.stop].mean()
    return Importance(scores)


def loss(lm: AdditiveLM, mask: torch.Tensor) -> float:
    """The loss of a mask, without the noise of batches."""
    return float((1 - mask.double()) @ lm.worth)


def left_to_gain(lm: AdditiveLM, mask: torch.Tensor, start: torch.Tensor, budget: Budget) -> float:
    """The share of what can be gained over the mask at the start that a mask does not gain."""
    best = loss(lm, budget.round(lm.worth))
    return (loss(lm, mask) - best) / (loss(lm, start) - best)
