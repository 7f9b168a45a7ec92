"""What masks keep of one layer, and where it lies in the weights of the layer's projections.

The sliced executor needs indices on the model's device. They are worked out on the host by NumPy,
which is quick with little things, and sent for all masks and layers of a pass in one copy.
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

Fill = Mapping[tuple[int, str], Tensor]
"""What pruned inputs of a projection are in place of zero, by layer and kind: (inputs,) each.

The kind is ``heads`` for the attention output projection and ``channels`` for the down projection.
"""


@dataclass(frozen=True)
class KeptRows:
    """Rows of a layer's projections that one mask keeps, (r,) int64 each.

    Attributes:
        heads: kv heads that are kept; None where nothing is pruned of them.
        keys: rows of the key and value projections, if ``heads`` is a number.
        queries: rows of the query projection and columns of the output projection, likewise.
        channels: rows of what expands and columns of the down projection; None for all.
    """

    heads: int | None
    keys: Tensor
    queries: Tensor
    channels: Tensor | None


class LayerMask:
    """The part of K masks that one layer needs.

    Args:
        masks: (K, n).
        units: the units of the whole model.
        index: the layer.
        family: where the layer's projections are.
        fill: what pruned inputs are; None for zero.

    Attributes:
        parts: for each kind of unit, the masks of this layer's units, (K, units of the kind);
            blocks of channels are spelt out, (K, channels).
        shape: of the layer.
        family: of the model.
        fill: what pruned inputs are, by the path of their projection; empty for zero.
        prepared: rows of a single mask on the device, once ``prepare`` or ``rows`` was called.
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
        self.parts = {
            group.kind: masks[:, group.start : group.stop]
            for group in units.groups[first : first + len(units.kinds)]
        }
        if "channels" in self.parts and units.channel_block > 1:
            self.parts["channels"] = self.parts["channels"].repeat_interleave(
                units.channel_block, dim=1
            )

    def kept(self, kind: str, block: str) -> Tensor | None:
        """Indices of the heads or channels that one mask keeps; None where it keeps all."""
        if block in self.parts:
            return None if self.parts[block][0, 0] else torch.empty(0, dtype=torch.int64)
        if kind not in self.parts:
            return None
        kept = np.flatnonzero(self.parts[kind][0].numpy(force=True))
        return None if len(kept) == self.parts[kind].shape[1] else torch.from_numpy(kept)

    def output_columns(self) -> Tensor | None:
        """Which inputs of the attention output projection are kept, (K, query heads * d)."""
        if "heads" not in self.parts:
            return None
        width = self.shape.query_heads_per_group * self.shape.head_dim
        return self.parts["heads"].repeat_interleave(width, dim=1)

    @property
    def key(self) -> tuple[bytes, ...]:
        """What equals that of another single mask if both agree on this layer."""
        return tuple(part.numpy(force=True).tobytes() for part in self.parts.values())

    def rows(self, device: torch.device) -> KeptRows:
        """The rows that a single mask keeps, on a device."""
        if self.prepared is None:
            prepare([self], device)
        assert self.prepared is not None
        return self.prepared


def prepare(masks: Sequence[LayerMask], device: torch.device) -> None:
    """Gives single masks of layers their ``prepared`` rows, in one copy to the device for all."""
    found = [_rows(mask) for mask in masks]
    every = [rows for _, *each in found for rows in each if rows is not None]
    flat = torch.from_numpy(np.concatenate([*every, np.empty(0, np.int64)]))
    there = iter(send(flat, device).split([len(rows) for rows in every]))
    for mask, (heads, *each) in zip(masks, found, strict=True):
        keys, queries, channels = (None if rows is None else next(there) for rows in each)
        assert keys is not None and queries is not None
        mask.prepared = KeptRows(heads, keys, queries, channels)


Rows = npt.NDArray[np.int64]


def _rows(mask: LayerMask) -> tuple[int | None, Rows, Rows, Rows | None]:
    """The fields of ``KeptRows``, on the host."""
    shape, channels = mask.shape, mask.kept("channels", "mlp")
    heads = mask.kept("heads", "attention")
    none = np.empty(0, np.int64)
    kept = none if heads is None else heads.numpy()
    keys = _expand(kept, shape.head_dim)
    queries = _expand(kept, shape.head_dim * shape.query_heads_per_group)
    count = None if heads is None else len(heads)
    return count, keys, queries, None if channels is None else channels.numpy()


def _expand(kept: Rows, width: int) -> Rows:
    """Indices of all rows of the kept heads: (h,) -> (h * width,)."""
    return (kept[:, None] * width + np.arange(width)).ravel()
