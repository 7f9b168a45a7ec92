"""Where the weights of kept units are in the parameters of a decoder layer."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgprune.masking.layer_mask import columns_of_values, rows_of_groups
from pgprune.models.family import Family
from pgprune.models.shapes import LayerShape


@dataclass(frozen=True)
class LayerPlan:
    """What a mask keeps of one decoder layer.

    Attributes:
        index: of the layer in the dense model.
        heads: indices of the kept kv groups, (h,); None if all are kept or the block is pruned.
        values: indices of the kept value dimensions of all kv heads, (r,); None likewise.
        channels: indices of the kept channels, (c,); None if all are kept or the block is pruned.
        skip: the blocks that are pruned with their norms: of ``attention`` and ``mlp``.
        experts: indices of the kept experts, (e,); None if all are kept or the block is pruned.
    """

    index: int
    heads: Tensor | None
    values: Tensor | None
    channels: Tensor | None
    skip: tuple[str, ...]
    experts: Tensor | None = None


def layer_cuts(
    layer: nn.Module, plan: LayerPlan, shape: LayerShape, family: Family
) -> dict[str, dict[int, Tensor]]:
    """Returns what a plan keeps of each parameter that it cuts: indices along dimensions."""
    cuts: dict[str, dict[int, Tensor]] = {}
    for kept, cuts_of in (
        (plan.heads, head_cuts),
        (plan.values, value_cuts),  # in place of the heads' cuts of v and o
        (plan.experts, expert_cuts),
        (plan.channels, channel_cuts),
    ):
        for name, dim, index in cuts_of(kept, shape, family, layer) if kept is not None else ():
            cuts.setdefault(name, {})[dim] = index
    return cuts


def block_names(blocks: tuple[str, ...], family: Family) -> tuple[str, ...]:
    """Returns the prefixes of parameters of the blocks ``attention`` and ``mlp``, with norms."""
    modules: tuple[str, ...] = ()
    if "attention" in blocks:
        modules += (family.attention, *family.attention_norms)
    if "mlp" in blocks:
        modules += (*family.expand, family.down, *family.mlp_norms)
    return tuple(f"{module}." for module in modules)


Cuts = Iterator[tuple[str, int, Tensor]]


def head_cuts(groups: Tensor, shape: LayerShape, family: Family, layer: nn.Module) -> Cuts:
    """Yields where kv groups (h,) are: names of parameters, dimensions, indices along them."""
    rows, queries = (
        torch.from_numpy(rows_of_groups(groups.numpy(), width))
        for width in (shape.head_dim, shape.head_dim * shape.query_heads_per_group)
    )
    for path, index in ((family.key, rows), (family.value, rows), (family.query, queries)):
        for name, _ in layer.get_submodule(path).named_parameters():
            yield f"{path}.{name}", 0, index
    yield f"{family.output}.weight", 1, queries  # (D, query heads * d)


def value_cuts(values: Tensor, shape: LayerShape, family: Family, layer: nn.Module) -> Cuts:
    """Yields where value dimensions (r,) are: names of parameters, dimensions, indices."""
    for name, _ in layer.get_submodule(family.value).named_parameters():
        yield f"{family.value}.{name}", 0, values
    columns = columns_of_values(values.numpy(), shape.head_dim, shape.query_heads_per_group)
    yield f"{family.output}.weight", 1, torch.from_numpy(columns)  # (D, query heads * d)


def channel_cuts(channels: Tensor, shape: LayerShape, family: Family, layer: nn.Module) -> Cuts:
    """Yields where channels (c,) are: names of parameters, dimensions, indices along them."""
    if family.experts is not None:
        for part in family.experts.channel_parts(layer):
            yield part.name, part.dim, part.index(channels)
        return
    for path in family.expand:
        for name, _ in layer.get_submodule(path).named_parameters():
            yield f"{path}.{name}", 0, channels
    yield f"{family.down}.weight", 1, channels  # (D, channels)


def expert_cuts(experts: Tensor, shape: LayerShape, family: Family, layer: nn.Module) -> Cuts:
    """Yields where experts (e,) are: names of parameters, dimensions, indices along them."""
    assert family.experts is not None
    for path in (family.experts.router, family.experts.experts):
        for name in layer.get_submodule(path).state_dict():
            yield f"{path}.{name}", 0, experts
