"""Which weights a unit is made of, and sums over them."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pgprune.masking.masked_lm import MaskedLM
from pgprune.models.families import Family, decoder_layers, family_of

Salience = Callable[[nn.Parameter, int | None], Tensor]
"""From a parameter and the dimension along which units lie to a number for each index of that
dimension, or one number where the parameter belongs to a unit as a whole (None)."""


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
        here = slice(group.start, group.stop)
        for parameter, dim in _parts(layers[group.layer], family, group.kind):
            values = salience(parameter, dim).to("cpu", torch.float64)
            sums[here] += values.view(group.stop - group.start, -1).sum(1)
    return sums


def slice_sums(tensor: Tensor, dim: int | None) -> Tensor:
    """Sum over all but one dimension, or over all: (size of dim,) or () float64."""
    if dim is None:
        return tensor.sum(dtype=torch.float64)
    rest = [other for other in range(tensor.ndim) if other != dim]
    return tensor.sum(rest, dtype=torch.float64) if rest else tensor.double()


def _parts(
    layer: nn.Module, family: Family, kind: str
) -> Iterator[tuple[nn.Parameter, int | None]]:
    """The parameters that units of a kind are made of, each with the dimension of the units."""
    if kind in ("heads", "channels"):
        attention = (family.query, family.key, family.value)
        rows, column = {
            "heads": (attention, family.output),
            "channels": (family.expand, family.down),
        }[kind]
        for path in rows:
            yield from ((p, 0) for p in layer.get_submodule(path).parameters())
        yield layer.get_submodule(column).get_parameter("weight"), 1
    if kind in ("attention", "layer"):
        yield from _whole(layer, family.attention, *family.attention_norms)
    if kind in ("mlp", "layer"):
        yield from _whole(layer, *family.expand, family.down, *family.mlp_norms)


def _whole(layer: nn.Module, *paths: str) -> Iterator[tuple[nn.Parameter, None]]:
    for path in paths:
        yield from ((p, None) for p in layer.get_submodule(path).parameters())
