"""The part of a mask that concerns one layer, and the weight rows that it keeps there.

The sliced executor needs row indices on the model's device. NumPy computes them on the host, where
a call on a small array costs little, and one copy sends those of all masks and layers of a pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pgprune.masking.units import PruningUnits
from pgprune.models.families import Family
from pgprune.utils.transfer import send

Rows = npt.NDArray[np.int64]

Fill = Mapping[tuple[int, str], Tensor]
"""Values that pruned inputs of a projection take in place of zero, by layer and kind: (inputs,).

The kind is ``heads`` for the attention output projection and ``channels`` for the down projection.
"""


@dataclass(frozen=True)
class KeptRows:
    """Rows of a layer's projections that one mask keeps, (r,) int64 each.

    Attributes:
        heads: number of kept kv heads; None if all are kept.
        keys: rows of the key and value projections, empty if ``heads`` is None.
        queries: rows of the query and columns of the output projection, likewise.
        channels: rows of the expanding and columns of the down projection; None for all.
    """

    heads: int | None
    keys: Tensor
    queries: Tensor
    channels: Tensor | None


class LayerMask:
    """The part of K masks that concerns one layer.

    Args:
        masks: (K, n).
        units: the units of the whole model.
        index: the layer.
        family: where the layer's projections are.
        fill: values of pruned inputs; None for zero.

    Attributes:
        by_kind: the masks of this layer's units by their kind, (K, units of the kind); a block of
            channels is repeated for each channel, (K, channels).
        shape: of the layer.
        family: of the model.
        fill: values of pruned inputs, by the path of their projection; empty for zero.
        prepared: rows of a single mask on the device, set by ``prepare`` or ``rows``.
    """

    def __init__(
        self,
        masks: Tensor,
        units: PruningUnits,
        index: int,
        family: Family,
        fill: Fill | None = None,
    ) -> None:
        self.family = family
        kinds = {family.output: "heads", family.down: "channels"}
        self.fill = {path: fill[index, kind] for path, kind in kinds.items()} if fill else {}
        self.shape = units.shapes[index]
        self.prepared: KeptRows | None = None
        first = index * len(units.kinds)
        self.by_kind = {
            group.kind: masks[:, group.start : group.stop]
            for group in units.groups[first : first + len(units.kinds)]
        }
        if "channels" in self.by_kind and units.channel_block > 1:
            self.by_kind["channels"] = self.by_kind["channels"].repeat_interleave(
                units.channel_block, dim=1
            )

    def kept(self, kind: str, block: str) -> Tensor | None:
        """Indices of the heads or channels that one mask keeps; None where it keeps all."""
        if block in self.by_kind:  # a pruned block keeps none of its units
            return None if self.by_kind[block][0, 0] else torch.empty(0, dtype=torch.int64)
        if kind not in self.by_kind:
            return None
        kept = np.flatnonzero(self.by_kind[kind][0].numpy(force=True))
        return None if len(kept) == self.by_kind[kind].shape[1] else torch.from_numpy(kept)

    def output_columns(self) -> Tensor | None:
        """Returns the masks of the attention output projection's inputs, (K, query heads * d)."""
        if "heads" not in self.by_kind:
            return None
        width = self.shape.query_heads_per_group * self.shape.head_dim
        return self.by_kind["heads"].repeat_interleave(width, dim=1)

    @property
    def key(self) -> tuple[bytes, ...]:
        """Identifies the part: equal keys mean that two single masks agree on this layer."""
        return tuple(mask.numpy(force=True).tobytes() for mask in self.by_kind.values())

    def rows(self, device: torch.device) -> KeptRows:
        """The rows that a single mask keeps, on a device."""
        if self.prepared is None:
            prepare([self], device)
        assert self.prepared is not None
        return self.prepared


def prepare(masks: Sequence[LayerMask], device: torch.device) -> None:
    """Sets the ``prepared`` rows of single masks of layers, by one copy to the device for all."""
    heads: list[int | None] = []
    on_host: dict[tuple[int, str], Rows] = {}
    for index, mask in enumerate(masks):
        groups, channels = mask.kept("heads", "attention"), mask.kept("channels", "mlp")
        heads.append(None if groups is None else len(groups))
        kept = np.empty(0, np.int64) if groups is None else groups.numpy()
        query_width = mask.shape.head_dim * mask.shape.query_heads_per_group
        on_host[index, "keys"] = rows_of_groups(kept, mask.shape.head_dim)
        on_host[index, "queries"] = rows_of_groups(kept, query_width)
        if channels is not None:
            on_host[index, "channels"] = channels.numpy()
    flat = send(torch.from_numpy(np.concatenate(list(on_host.values()))), device)
    sizes = [len(rows) for rows in on_host.values()]
    on_device = dict(zip(on_host, flat.split(sizes), strict=True))
    for index, mask in enumerate(masks):
        keys, queries = on_device[index, "keys"], on_device[index, "queries"]
        mask.prepared = KeptRows(heads[index], keys, queries, on_device.get((index, "channels")))


def rows_of_groups(groups: Rows, width: int) -> Rows:
    """Returns the indices of all rows of groups of ``width`` rows: (h,) -> (h * width,)."""
    return (groups[:, None] * width + np.arange(width)).ravel()
