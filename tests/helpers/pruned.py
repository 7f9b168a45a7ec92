"""Masks of equal layers, and how pruned models are looked at."""

import torch

from helpers.tiny import masked_lm, tokens
from pgprune.masking.units import PruningUnits
from pgprune.methods.slicegpt import find_slices
from pgprune.surgery.stream_slices import Slices


def parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model(tokens()).logits


@torch.no_grad()
def in_pieces(model, ids: torch.Tensor, sizes=(4, 1, 1, 3)) -> torch.Tensor:
    """Logits of a text that is fed piece by piece through a cache."""
    cache, logits = None, []
    for piece in ids.split(sizes, dim=1):
        output = model(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def sliced(model, width: int = 16) -> Slices:
    """Slices of a tiny model's residual stream, which has 32 dimensions."""
    return find_slices(masked_lm(model), tokens(batch=20, length=16, seed=1), width)


def equal_layers(units: PruningUnits, **kept: int) -> torch.Tensor:
    """A mask that keeps the given number of units of each kind in every layer, not the same."""
    mask = units.ones()
    for group in units.groups:
        size = group.stop - group.start
        order = torch.randperm(size, generator=torch.Generator().manual_seed(group.start))
        mask[group.start + order[kept.get(group.kind, size) :]] = 0
    return mask
