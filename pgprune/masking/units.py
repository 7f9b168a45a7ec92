"""The units that mask bits keep or prune: their flat order, their groups, their parameters."""

import copy
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from pgprune.errors import PruningError, check_choice
from pgprune.models.families import check_kinds
from pgprune.models.shapes import LayerShape, layer_shapes
from pgprune.utils.transfer import send

GRANULARITIES: dict[str, tuple[str, ...]] = {
    "heads+channels": ("heads", "channels"),
    "heads": ("heads",),
    "channels": ("channels",),
    "values+channels": ("values", "channels"),
    "values": ("values",),
    "blocks": ("attention", "mlp"),
    "layers": ("layer",),
    "experts": ("experts",),
    "heads+experts": ("heads", "experts"),
    "experts+channels": ("experts", "channels"),
}
"""The kinds of unit of each granularity, in their order within a layer."""


def kinds_multiply(kinds: Collection[str]) -> bool:
    """Tells if a layer has the parameters of one kind of unit times those of the other."""
    return {"experts", "channels"} <= set(kinds)


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
        PruningError: an unknown granularity, one that is about other MLPs, or a block that does
            not divide the MLP width.
    """

    def __init__(
        self, shapes: list[LayerShape], granularity: str = "heads+channels", channel_block: int = 1
    ) -> None:
        check_choice("granularity", granularity, GRANULARITIES)
        _check_experts(shapes, granularity)
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
    def multiply(self) -> bool:
        """Whether numbers of its kinds multiply, as ``kinds_multiply`` says."""
        return kinds_multiply(self.kinds)

    @property
    def prunable(self) -> int:
        """Parameters of all units together: what a prune rate is a share of."""
        return int(self.cost.sum()) - self._shared_parameters(torch.zeros(self.n))

    @cached_property
    def sizes(self) -> Tensor:
        """Units in each group, (groups,) float64."""
        return torch.tensor([float(group.stop - group.start) for group in self.groups]).double()

    @cached_property
    def needed(self) -> Tensor:
        """Units of each group without which a layer does not run, (groups,) int64.

        A token uses a number of experts, and a layer keeps as many, with a channel at least.
        """
        needs = {"experts": [shape.experts_per_token for shape in self.shapes]}
        if "experts" in self.kinds:
            needs["channels"] = [min(1, shape.experts) for shape in self.shapes]
        none = [0] * self.layers
        return torch.tensor([needs.get(group.kind, none)[group.layer] for group in self.groups])

    @cached_property
    def least(self) -> Tensor:
        """Units of each group that every mask within a budget keeps, (groups,) int64."""
        return self.needed

    def keeping(self, least: Tensor) -> Self:
        """Returns the same units, of which every mask keeps some of each group, (groups,) int64."""
        units = copy.copy(self)
        units.__dict__["least"] = torch.maximum(self.needed, least)
        return units

    @cached_property
    def active_cost(self) -> Tensor:
        """Parameters that a token uses less without each unit, (n,) int64.

        Without an expert it uses another one, but the router has a row less.
        """
        rows = torch.tensor([shape.router_row_cost for shape in self.shapes])[self.layer]
        experts = [kind == "experts" for kind in self.kinds]
        return torch.where(torch.tensor(experts)[self.kind], rows, self.cost)

    def kept_counts(self, masks: Tensor) -> Tensor:
        """Counts the kept units of each group: masks (K, n) -> (K, groups) float64."""
        groups = (masks[:, group.start : group.stop] for group in self.groups)
        return torch.stack([bits.sum(dim=1, dtype=torch.float64) for bits in groups], dim=1)

    def kept_shares(self, masks: Tensor) -> Tensor:
        """Computes the share of units kept in each group: masks (K, n) -> (K, groups) float64.

        A group without units, such as the experts of a layer without them, has 1.
        """
        sizes = send(self.sizes, masks.device)
        return (self.kept_counts(masks) / sizes).masked_fill(sizes == 0, 1.0)

    def kind_shares(self, masks: Tensor) -> Tensor:
        """Computes the share of units kept of each kind: masks (K, n) -> (K, kinds) float64."""
        kept, sizes = self.kept_counts(masks), send(self.sizes, masks.device)
        kinds = len(self.kinds)  # groups come layer by layer, kind by kind
        shares = [kept[:, k::kinds].sum(dim=1) / sizes[k::kinds].sum() for k in range(kinds)]
        return torch.stack(shares, dim=1)

    def kept_parameters(self, mask: Tensor) -> int:
        """Counts the parameters that are left of the units' under a mask (n,)."""
        pruned = int(self.cost[~mask.cpu().bool()].sum()) - self._shared_parameters(mask.cpu())
        return self.prunable - pruned

    def pruned_parameters(self, mask: Tensor) -> int:
        """Counts the parameters that are gone without the units that a mask (n,) prunes.

        These are their own and, of kv heads that keep no value dimension, those of q and k.
        """
        return self.prunable - self.kept_parameters(mask) + self._idle_parameters(mask.cpu())

    def prune_rate(self, mask: Tensor) -> float:
        """Computes the share of the prunable parameters that a mask (n,) prunes."""
        return 1 - self.kept_parameters(mask) / self.prunable

    def _shared_parameters(self, mask: Tensor) -> int:
        """Counts the parameters that units have in common which a mask (n,) prunes.

        These are the pruned channels of pruned experts.
        """
        if not self.multiply:
            return 0
        pruned = (self.sizes - self.kept_counts(mask[None])[0]).long().view(self.layers, -1)
        each = torch.tensor([shape.expert_channel_cost for shape in self.shapes])
        return int((pruned.prod(1) * each).sum()) * self.channel_block

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


def _count_and_cost(shape: LayerShape, kind: str, channel_block: int) -> tuple[int, int]:
    """Returns the number of units of a kind in a layer, and the parameters of one."""
    return {
        "heads": (shape.kv_heads, shape.kv_group_cost),
        "values": (shape.kv_heads * shape.head_dim, shape.value_cost),
        "channels": (shape.channels // channel_block, shape.channel_cost * channel_block),
        "attention": (1, shape.attention_cost),
        "mlp": (1, shape.mlp_cost),
        "layer": (1, shape.attention_cost + shape.mlp_cost),
        "experts": (shape.experts, shape.expert_cost),
    }[kind]


def _check_experts(shapes: list[LayerShape], granularity: str) -> None:
    """Refuses experts of a model without them, and channels alone of one with experts."""
    mixture = any(shape.experts for shape in shapes)
    apart = "channels" if mixture else "experts"  # from experts, or at all
    unfit = [
        name
        for name, kinds in GRANULARITIES.items()
        if apart in kinds and not (mixture and "experts" in kinds)
    ]
    if granularity in unfit:
        rest = [name for name in GRANULARITIES if name not in unfit]
        what = "is a mixture, whose channels go with experts" if mixture else "has no experts"
        raise PruningError(
            f"granularity {granularity} does not fit, because the model {what}; choose "
            f"{', '.join(rest[:-1])} or {rest[-1]}"
        )
