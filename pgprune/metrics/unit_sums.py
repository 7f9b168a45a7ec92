"""Sums over the weights that a unit is made of."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pgprune.masking.masked_lm import MaskedLM
from pgprune.models.families import decoder_layers, family_of
from pgprune.models.family import Family

Salience = Callable[[nn.Parameter, int | None], Tensor]
"""(parameter, dimension of the units) -> a number for each index of that dimension; for None, where
the whole parameter belongs to one unit, one number."""


def unit_sums(lm: MaskedLM, salience: Salience) -> Tensor:
    """Adds up over the parameters of each unit, as ``PruningUnits`` counts them.

    Args:
        lm: the model.
        salience: of the slices of a parameter.

    Returns:
        (n,) float64 on the CPU. A kv group is the sum over all its rows and columns, those of its
        own query heads (not every Hkv-th one) included.
    """
    family = family_of(lm.model.config)
    layers = decoder_layers(lm.model, family)
    sums = torch.zeros(lm.units.n, dtype=torch.float64)
    for group in lm.units.groups:
        if group.start == group.stop:
            continue
        here = slice(group.start, group.stop)
        layer = layers[group.layer]
        if group.kind == "channels" and family.experts is not None:
            for part in family.experts.channel_parts(layer):
                numbers = salience(layer.get_parameter(part.name), part.dim)
                values = part.of_units(numbers.to("cpu", torch.float64))
                sums[here] += values.view(group.stop - group.start, -1).sum(1)
            continue
        for parameter, dim in _parts(layer, family.of(layer), group.kind):
            values = salience(parameter, dim).to("cpu", torch.float64)
            if group.kind == "values":  # a column of o for each query head of a kv head
                shape = lm.units.shapes[group.layer]
                sums[here] += values.view(shape.kv_heads, -1, shape.head_dim).sum(1).flatten()
            else:
                # Rows of q are group_size times those of k: a view by units adds up either.
                sums[here] += values.view(group.stop - group.start, -1).sum(1)
    return sums


def slice_sums(tensor: Tensor, dim: int | None) -> Tensor:
    """Sums over all but one dimension, or over all: (size of dim,) or () float64."""
    if dim is None:
        return tensor.sum(dtype=torch.float64)
    rest = [other for other in range(tensor.ndim) if other != dim]
    return tensor.sum(rest, dtype=torch.float64) if rest else tensor.double()


def _parts(
    layer: nn.Module, family: Family, kind: str
) -> Iterator[tuple[nn.Parameter, int | None]]:
    """Yields the parameters that units of a kind are made of, each with the units' dimension."""
    if kind in ("heads", "values", "channels"):
        attention = (family.query, family.key, family.value)
        rows, column = {
            "heads": (attention, family.output),
            "values": ((family.value,), family.output),
            "channels": (family.expand, family.down),
        }[kind]
        for path in rows:
            yield from ((p, 0) for p in layer.get_submodule(path).parameters())
        yield layer.get_submodule(column).get_parameter("weight"), 1
    if kind == "experts" and family.experts is not None:
        for path in (family.experts.router, family.experts.experts):
            yield from ((p, 0) for p in layer.get_submodule(path).parameters())
    if kind in ("attention", "layer"):
        yield from _whole(layer, family.attention, *family.attention_norms)
    if kind in ("mlp", "layer"):
        yield from _whole(layer, *family.expand, family.down, *family.mlp_norms)


def _whole(layer: nn.Module, *paths: str) -> Iterator[tuple[nn.Parameter, None]]:
    for path in paths:
        yield from ((p, None) for p in layer.get_submodule(path).parameters())
