"""The part of a mask that concerns one layer, and the weight rows that it keeps there.

The sliced executor needs row indices on the model's device. NumPy computes them on the host, where
a call on a small array costs little, and one copy sends those of all masks and layers of a pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pgprune.masking.units import PruningUnits
from pgprune.models.family import Family
from pgprune.utils.transfer import send

Rows = npt.NDArray[np.int64]

Fill = Mapping[tuple[int, str], Tensor]
"""Values that pruned inputs of a projection take in place of zero, by layer and kind: (inputs,).

The kind is ``heads`` for the attention output projection and ``channels`` for the down projection.
"""

Refit = Callable[[int, str, int], tuple[Tensor, Tensor | None] | None]
"""Weights of a projection for the inputs that a mask keeps: layer, kind and number of kept units
to a weight (D, kept inputs), whose columns are in the order of the inputs, and a bias (D,) or None;
None for dense weights.
"""


@dataclass(frozen=True)
class ValueRows:
    """Value dimensions that one mask keeps in kv heads of which it prunes some, (r,) int64 each.

    Attributes:
        rows: of the value projection.
        slots: their places among all value dimensions of the kept kv heads.
        columns: of the output projection.
        places: their places among all head dimensions of the kept query heads.
    """

    rows: Tensor
    slots: Tensor
    columns: Tensor
    places: Tensor


@dataclass(frozen=True)
class KeptRows:
    """Rows of a layer's projections that one mask keeps, (r,) int64 each.

    Attributes:
        heads: number of kept kv heads; None if all are kept as a whole.
        keys: rows of the key and value projections, empty if ``heads`` is None.
        queries: rows of the query and columns of the output projection, likewise.
        values: in place of rows of the value and columns of the output projection, where value
            dimensions of kept kv heads are pruned.
        channels: rows of the expanding and columns of the down projection; None for all.
    """

    heads: int | None
    keys: Tensor
    queries: Tensor
    values: ValueRows | None
    channels: Tensor | None

    @property
    def columns(self) -> Tensor:
        """Columns of the output projection, (r,); empty if ``heads`` is None."""
        return self.queries if self.values is None else self.values.columns


class LayerMask:
    """The part of K masks that concerns one layer.

    Args:
        masks: (K, n).
        units: the units of the whole model.
        index: the layer.
        family: where the layer's projections are.
        fill: values of pruned inputs; None for zero.
        refit: weights of a single mask's kept inputs in place of dense ones; None for these.

    Attributes:
        by_kind: the masks of this layer's units by their kind, (K, units of the kind); a block of
            channels is repeated for each channel, (K, channels).
        shape: of the layer.
        index: of the layer.
        family: of the model.
        refit: as given.
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
        refit: Refit | None = None,
    ) -> None:
        self.index = index
        self.family = family
        self.refit = refit
        kinds = {"heads": family.output, "channels": family.down}
        found = [kind for kind in kinds if fill and (index, kind) in fill]
        self.fill = {kinds[kind]: fill[index, kind] for kind in found} if fill else {}
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
        """Indices of the units of a kind that one mask keeps; None where it keeps all.

        Of ``heads``, those that keep a value dimension where these are the units.
        """
        if block in self.by_kind:  # a pruned block keeps none of its units
            return None if self.by_kind[block][0, 0] else torch.empty(0, dtype=torch.int64)
        bits = self.by_kind.get(kind)
        if kind == "heads" and "values" in self.by_kind:
            bits = self.by_kind["values"].unflatten(1, (self.shape.kv_heads, -1)).any(2)
        if bits is None:
            return None
        kept = np.flatnonzero(bits[0].numpy(force=True))
        return None if len(kept) == bits.shape[1] else torch.from_numpy(kept)

    def output_columns(self) -> Tensor | None:
        """Returns the masks of the attention output projection's inputs, (K, query heads * d)."""
        group, width = self.shape.query_heads_per_group, self.shape.head_dim
        if "heads" in self.by_kind:
            return self.by_kind["heads"].repeat_interleave(group * width, dim=1)
        if "values" in self.by_kind:  # each for all query heads of its kv head
            values = self.by_kind["values"].unflatten(1, (-1, 1, width))
            return values.expand(-1, -1, group, -1).flatten(1)
        return None

    def refitted(self, path: str) -> tuple[Tensor, Tensor | None] | None:
        """Returns weight and bias of a projection for what a single mask keeps; None if dense."""
        kinds = ("channels",) if path == self.family.down else ("heads", "values")
        found = [kind for kind in kinds if kind in self.by_kind]
        if self.refit is None or not found:
            return None
        return self.refit(self.index, found[0], int(self.by_kind[found[0]].sum()))

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
        values = mask.kept("values", "attention")
        if groups is None and values is not None:
            groups = torch.arange(mask.shape.kv_heads)
        heads.append(None if groups is None else len(groups))
        kept = np.empty(0, np.int64) if groups is None else groups.numpy()
        query_width = mask.shape.head_dim * mask.shape.query_heads_per_group
        on_host[index, "keys"] = rows_of_groups(kept, mask.shape.head_dim)
        on_host[index, "queries"] = rows_of_groups(kept, query_width)
        if values is not None:
            for name, rows in _value_rows(mask, values.numpy(), kept).items():
                on_host[index, name] = rows
        if channels is not None:
            on_host[index, "channels"] = channels.numpy()
    flat = send(torch.from_numpy(np.concatenate(list(on_host.values()))), device)
    sizes = [len(rows) for rows in on_host.values()]
    on_device = dict(zip(on_host, flat.split(sizes), strict=True))
    for index, mask in enumerate(masks):
        keys, queries = on_device[index, "keys"], on_device[index, "queries"]
        values_here = None
        if (index, "rows") in on_device:
            names = ("rows", "slots", "columns", "places")
            values_here = ValueRows(*(on_device[index, name] for name in names))
        channels_here = on_device.get((index, "channels"))
        mask.prepared = KeptRows(heads[index], keys, queries, values_here, channels_here)


def _value_rows(mask: LayerMask, values: Rows, groups: Rows) -> dict[str, Rows]:
    """Returns the fields of ``ValueRows`` for kept value dimensions (r,) of kv heads (h,)."""
    shape = mask.shape
    columns = columns_of_values(values, shape.head_dim, shape.query_heads_per_group)
    keys = rows_of_groups(groups, shape.head_dim)
    queries = rows_of_groups(groups, shape.head_dim * shape.query_heads_per_group)
    return {
        "rows": values,
        "slots": np.searchsorted(keys, values),
        "columns": columns,
        "places": np.searchsorted(queries, columns),
    }


def columns_of_values(values: Rows, head_dim: int, group: int) -> Rows:
    """Returns the columns of o of value dimensions (r,), for all ``group`` query heads of each."""
    heads, dimensions = np.divmod(values, head_dim)
    queries = heads[:, None] * group + np.arange(group)  # (r, group)
    return np.sort((queries * head_dim + dimensions[:, None]).ravel())


def rows_of_groups(groups: Rows, width: int) -> Rows:
    """Returns the indices of all rows of groups of ``width`` rows: (h,) -> (h * width,)."""
    return (groups[:, None] * width + np.arange(width)).ravel()


def by_unit(inputs: Tensor, order: Tensor | None) -> Tensor:
    """Arranges inputs or columns (..., inputs) in the order of ``PruningUnits.input_order``."""
    return inputs if order is None else inputs.index_select(-1, order.to(inputs.device))
