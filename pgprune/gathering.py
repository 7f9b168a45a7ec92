"""Weights of the units that are kept, gathered row by row into matrices that multiply fast.

Rows are contiguous in memory and columns are not, so projections whose inputs are pruned lie
transposed. Matrix kernels want widths that fill whole cache lines (on a CPU, a product with 1,029
outputs takes 1.5 times as long as one with 1,040), so wide matrices end in a few rows of zeros.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pgprune.families import Family, linear_at

_LINE_BYTES = 64  # what the width of a gathered matrix is a multiple of
_LEAST_LINES = 16  # narrower ones stay as they are, so that zeros are a sixteenth at most


@torch.no_grad()
def lay_out(layers: Iterable[nn.Module], family: Family) -> None:
    """Transposes how the output and down projections lie in memory, in place.

    The parameters stay what they were, in shape and value; only their strides change, so there
    is no second copy, and a model that is laid out works as any other.

    Args:
        layers: decoder layers.
        family: of the model.
    """
    for layer in layers:
        for path in (family.output, family.down):
            weight = linear_at(layer, path).weight
            weight.data = weight.data.t().contiguous().t()


def aligned(count: int, dtype: torch.dtype) -> int:
    """How many rows to gather for a number of units: at least as many, to fill cache lines."""
    line = _LINE_BYTES // dtype.itemsize
    return count if count < _LEAST_LINES * line else -(-count // line) * line


def gather(rows: Tensor, kept: Tensor, size: int) -> Tensor:
    """The kept rows, then zeros.

    Args:
        rows: (R, ...).
        kept: indices of rows, (r,) int64.
        size: rows of the result, at least r.

    Returns:
        (size, ...).
    """
    kept, count = kept.to(rows.device), len(kept)
    if count == size:
        return rows.index_select(0, kept)
    gathered = rows.new_empty(size, *rows.shape[1:])
    torch.index_select(rows, 0, kept, out=gathered[:count])
    gathered[count:].zero_()
    return gathered
