"""The units that mask bits keep or prune: their flat order, their groups, their parameters."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from pgprune.errors import PruningError, check_choice
from pgprune.models.families import (
    check_kinds,
    decoder_layers,
    family_of,
    head_sizes,
    linear_at,
)
from pgprune.utils.transfer import send

GRANULARITIES: dict[str, tuple[str, ...]] = {
    "heads+channels": ("heads", "channels"),
    "heads": ("heads",),
    "channels": ("channels",),
    "values+channels": ("values", "channels"),
    "values": ("values",),
    "blocks": ("attention", "mlp"),
    "layers": ("layer",),
}
"""The kinds of unit of each granularity, in their order within a layer."""


@dataclass(frozen=True)
class LayerShape:
    """The numbers of kv heads and channels of a decoder layer, and the parameters of each.

    Attributes:
        kv_heads: kv heads; one kv group is a kv head with all its query heads.
        query_heads_per_group: query heads of one kv group.
        head_dim: width of one head.
        channels: width of the MLP.
        kv_group_cost: parameters of one kv group: its rows of q, k, v with their biases, and its
            columns of the output projection.
        value_cost: parameters of one value dimension of a kv head: its row of v with its bias, and
            its columns of the output projection, one for each query head.
        channel_cost: parameters of one channel.
        attention_cost: parameters of the whole attention block, norms and biases included.
        mlp_cost: parameters of the whole MLP block, norm and biases included.
    """

    kv_heads: int
    query_heads_per_group: int
    head_dim: int
    channels: int
    kv_group_cost: int
    value_cost: int
    channel_cost: int
    attention_cost: int
    mlp_cost: int

    @property
    def query_key_cost(self) -> int:
        """Parameters of a kv group that are none of its value dimensions: rows of q and k."""
        return self.kv_group_cost - self.head_dim * self.value_cost


@dataclass(frozen=True)
class Group:
    """The units of one kind in one layer: ``start`` to ``stop`` of the flat order."""

    layer: int
    kind: str
    start: int
    stop: int

    @property
    def projection(self) -> str:
        """Projection that has the units in its inputs: ``heads``, the output, or ``channels``."""
        return "heads" if self.kind == "values" else self.kind


class PruningUnits:
    """All prunable units of a model in one flat order: layer by layer, kind by kind, by index.

    Args:
        shapes: the shape of each decoder layer.
        granularity: a key of ``GRANULARITIES``.
        channel_block: how many neighbouring MLP channels make one unit.

    Raises:
        PruningError: an unknown granularity, or a block that does not divide the MLP width.
    """

    def __init__(
        self, shapes: list[LayerShape], granularity: str = "heads+channels", channel_block: int = 1
    ) -> None:
        check_choice("granularity", granularity, GRANULARITIES)
        for layer, shape in enumerate(shapes):
            if channel_block < 1 or shape.channels % channel_block:
                raise PruningError(
                    f"channel_block {channel_block} does not divide the {shape.channels} channels "
                    f"of layer {layer}; choose a divisor"
                )
        self.shapes = shapes
        self.granularity = granularity
        self.channel_block = channel_block
        self.kinds = GRANULARITIES[granularity]
        self.layers = len(shapes)
        groups: list[Group] = []
        costs: list[Tensor] = []
        for layer, shape in enumerate(shapes):
            for kind in self.kinds:
                count, cost = _count_and_cost(shape, kind, channel_block)
                start = groups[-1].stop if groups else 0  # flat order
                groups.append(Group(layer, kind, start, start + count))
                costs.append(torch.full((count,), cost, dtype=torch.int64))
        self.groups = tuple(groups)
        self.cost = torch.cat(costs)  # (n,)
        self.n = len(self.cost)

    @classmethod
    def of(
        cls, model: nn.Module, granularity: str = "heads+channels", channel_block: int = 1
    ) -> "PruningUnits":
        """Returns the units of a loaded causal LM of a known family.

        Raises:
            PruningError: as the class, or units of such a kind cannot be pruned in this family.
        """
        check_kinds(getattr(model, "config", None), GRANULARITIES.get(granularity, ()))
        return cls(list(layer_shapes(model)), granularity, channel_block)

    @cached_property
    def group(self) -> Tensor:
        """The index into ``groups`` of every unit, (n,) int64."""
        sizes = torch.tensor([group.stop - group.start for group in self.groups])
        return torch.repeat_interleave(torch.arange(len(self.groups)), sizes)

    @cached_property
    def kind(self) -> Tensor:
        """The index into ``kinds`` of every unit, (n,) int64."""
        kinds = torch.tensor([self.kinds.index(group.kind) for group in self.groups])
        return kinds[self.group]  # (n,)

    @cached_property
    def layer(self) -> Tensor:
        """The layer of every unit, (n,) int64."""
        return torch.tensor([group.layer for group in self.groups])[self.group]

    @property
    def prunable(self) -> int:
        """Parameters of all units together: what a prune rate is a share of."""
        return int(self.cost.sum())

    @cached_property
    def sizes(self) -> Tensor:
        """Units in each group, (groups,) float64."""
        return torch.tensor([float(group.stop - group.start) for group in self.groups]).double()

    def kept_counts(self, masks: Tensor) -> Tensor:
        """Counts the kept units of each group: masks (K, n) -> (K, groups) float64."""
        groups = (masks[:, group.start : group.stop] for group in self.groups)
        return torch.stack([bits.sum(dim=1, dtype=torch.float64) for bits in groups], dim=1)

    def kept_shares(self, masks: Tensor) -> Tensor:
        """Computes the share of units kept in each group: masks (K, n) -> (K, groups) float64."""
        return self.kept_counts(masks) / send(self.sizes, masks.device)

    def kind_shares(self, masks: Tensor) -> Tensor:
        """Computes the share of units kept of each kind: masks (K, n) -> (K, kinds) float64."""
        kept, sizes = self.kept_counts(masks), send(self.sizes, masks.device)
        kinds = len(self.kinds)  # groups come layer by layer, kind by kind
        shares = [kept[:, k::kinds].sum(dim=1) / sizes[k::kinds].sum() for k in range(kinds)]
        return torch.stack(shares, dim=1)

    def kept_parameters(self, mask: Tensor) -> int:
        """Counts the parameters of the units that a mask (n,) keeps."""
        return int(self.cost[mask.cpu().bool()].sum())

    def pruned_parameters(self, mask: Tensor) -> int:
        """Counts the parameters that are gone without the units that a mask (n,) prunes.

        These are their own and, of kv heads that keep no value dimension, those of q and k.
        """
        return self.prunable - self.kept_parameters(mask) + self._idle_parameters(mask.cpu())

    def prune_rate(self, mask: Tensor) -> float:
        """Computes the share of the prunable parameters that a mask (n,) prunes."""
        return 1 - self.kept_parameters(mask) / self.prunable

    def _idle_parameters(self, mask: Tensor) -> int:
        """Counts the rows of q and k of kv heads that keep no value dimension."""
        idle = 0
        for group in (group for group in self.groups if group.kind == "values"):
            shape = self.shapes[group.layer]
            dimensions = mask[group.start : group.stop].view(shape.kv_heads, shape.head_dim)
            idle += int((~dimensions.bool().any(1)).sum()) * shape.query_key_cost
        return idle

    def input_order(self, group: Group) -> Tensor | None:
        """Orders the inputs of a group's projection unit by unit, (inputs,); None if they are so.

        A value dimension has one input for each query head of its kv head.
        """
        shape = self.shapes[group.layer]
        if group.kind != "values" or shape.query_heads_per_group == 1:
            return None
        inputs = torch.arange(shape.kv_heads * shape.query_heads_per_group * shape.head_dim)
        heads = inputs.view(shape.kv_heads, shape.query_heads_per_group, shape.head_dim)
        return heads.transpose(1, 2).flatten()

    def ones(self) -> Tensor:
        """Returns the mask that keeps everything, (n,) uint8."""
        return torch.ones(self.n, dtype=torch.uint8)

    def check_mask(self, mask: Tensor) -> None:
        """Checks that a mask has one entry for each unit.

        Raises:
            PruningError: the mask has another shape than (n,).
        """
        if mask.shape != (self.n,):
            raise PruningError(f"the mask must have shape ({self.n},), got {tuple(mask.shape)}")

    def __str__(self) -> str:
        names = {"heads": "kv groups", "values": "value dimensions"}
        names |= {"attention": "attention blocks", "mlp": "MLP blocks"}
        counts = torch.bincount(self.kind, minlength=len(self.kinds)).tolist()
        return " + ".join(
            f"{count:,} {names.get(kind, kind.removesuffix('s') + 's')}"
            for kind, count in zip(self.kinds, counts, strict=True)
        )

    def describe(self) -> dict[str, str]:
        """Describes the units, for a saved mask that is to be read again."""
        return {
            "granularity": self.granularity,
            "channel_block": str(self.channel_block),
            "units": str(self.n),
            "parameters": str(self.prunable),
        }


def shapes_of(config: PretrainedConfig) -> list[LayerShape]:
    """Returns the shapes of the decoder layers of a model from its configuration alone."""
    with torch.device("meta"):  # builds the modules without memory for their weights
        shadow = AutoModelForCausalLM.from_config(config)
    return list(layer_shapes(shadow))


def layer_shapes(model: nn.Module) -> Iterator[LayerShape]:
    """Yields the shape of each decoder layer, from its weights.

    Raises:
        PruningError: the model's family is unknown.
    """
    family = family_of(getattr(model, "config", None))
    for layer in decoder_layers(model, family):
        kv_heads, per_group, head_dim = head_sizes(layer, family)
        output, down = linear_at(layer, family.output), linear_at(layer, family.down)
        query, key, value = (
            _row_cost(layer, path) for path in (family.query, family.key, family.value)
        )
        # A kv group owns its rows of k and v, the rows of its query heads, and their columns of o.
        value_cost = value + per_group * output.out_features
        mlp = (*family.expand, family.down, *family.mlp_norms)
        yield LayerShape(
            kv_heads=kv_heads,
            query_heads_per_group=per_group,
            head_dim=head_dim,
            channels=down.in_features,
            kv_group_cost=head_dim * (key + per_group * query + value_cost),
            value_cost=value_cost,
            channel_cost=sum(_row_cost(layer, path) for path in family.expand) + down.out_features,
            attention_cost=_parameters(layer, (family.attention, *family.attention_norms)),
            mlp_cost=_parameters(layer, mlp),
        )


def _count_and_cost(shape: LayerShape, kind: str, channel_block: int) -> tuple[int, int]:
    """Returns the number of units of a kind in a layer, and the parameters of one."""
    return {
        "heads": (shape.kv_heads, shape.kv_group_cost),
        "values": (shape.kv_heads * shape.head_dim, shape.value_cost),
        "channels": (shape.channels // channel_block, shape.channel_cost * channel_block),
        "attention": (1, shape.attention_cost),
        "mlp": (1, shape.mlp_cost),
        "layer": (1, shape.attention_cost + shape.mlp_cost),
    }[kind]


def _row_cost(layer: nn.Module, path: str) -> int:
    """Counts the parameters of one output of a projection, its bias included; 0 without a path."""
    linear = linear_at(layer, path) if path else None
    return 0 if linear is None else linear.in_features + (linear.bias is not None)


def _parameters(layer: nn.Module, paths: tuple[str, ...]) -> int:
    return sum(p.numel() for path in paths for p in layer.get_submodule(path).parameters())
