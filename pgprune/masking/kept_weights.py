"""Projections of a layer with kept rows or columns of their weights: gathered, or by index.

``plain`` gathers them, and the projections have the result in place of their weights. ``triton``
leaves them where they are: kernels read them by index. Both give the same up to rounding.

Rows are contiguous in memory and columns are not, so projections whose inputs are pruned lie
transposed. Matrix kernels want widths that fill whole cache lines (on a CPU, a product with 1,029
outputs takes 1.5 times as long as one with 1,040), so wide matrices end in a few rows of zeros.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pgprune.errors import PruningError
from pgprune.models.families import Family, linear_at

_LINE_BYTES = 64  # what the width of a gathered matrix is a multiple of
_LEAST_LINES = 16  # narrower ones stay as they are, so that zeros are a sixteenth at most


class Part(NamedTuple):
    """What is kept of one projection.

    Attributes:
        projection: the module.
        kept: indices of the rows of its weight, or of its columns, (r,) int64.
        size: how many it has after that, at least r; those beyond are zero.
        columns: whether columns are kept.
        constant: what is added then, (D,) with its bias in it; None for nothing.
    """

    projection: nn.Linear
    kept: Tensor
    size: int
    columns: bool = False
    constant: Tensor | None = None


Products = Callable[[Sequence[Part]], AbstractContextManager[None]]
"""Lets projections compute these parts of themselves."""


@contextmanager
def gathered(parts: Sequence[Part]) -> Iterator[None]:
    """Puts kept weights, in matrices of their own, in the place of the projections' weights."""
    own = [part.projection._parameters for part in parts]  # past the checks, which take their time
    dense = [dict(parameters) for parameters in own]
    try:
        for part, parameters in zip(parts, own, strict=True):
            parameters |= _kept(part, parameters)
        yield
    finally:
        for parameters, before in zip(own, dense, strict=True):
            parameters |= before


def _kept(part: Part, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The kept weights of a projection by their names in it."""
    weight, bias = parameters["weight"], parameters["bias"]
    if part.columns:  # which are rows where they are laid out
        kept = {"weight": gather(weight.t(), part.kept, part.size).t()}
        return kept if part.constant is None else kept | {"bias": part.constant}
    kept = {"weight": gather(weight, part.kept, part.size)}
    return kept if bias is None else kept | {"bias": gather(bias, part.kept, part.size)}


@contextmanager
def indexed(parts: Sequence[Part]) -> Iterator[None]:
    """Lets the projections call Triton kernels, which read kept weights by index."""
    from pgprune.masking.kernels import columns_product, rows_product  # which need Triton

    with ExitStack() as stack:
        for part in parts:
            projection, weight = part.projection, part.projection.weight
            kept = part.kept.to(weight.device)
            if part.columns:
                own = partial(columns_product, weight=weight, columns=kept, bias=part.constant)
            else:
                bias, size = projection.bias, part.size
                own = partial(rows_product, weight=weight, rows=kept, bias=bias, size=size)
            stack.enter_context(calling(projection, own))
        yield


KERNELS: dict[str, Products] = {"plain": gathered, "triton": indexed}
"""How kept rows and columns are multiplied, by name."""


def check_kernels(kernels: str, executor: str, device: torch.device) -> None:
    """Makes sure that an executor can have some kernels on a device.

    Args:
        kernels: a name in ``KERNELS``.
        executor: ``masked``, ``sliced``, or ``auto``, which is sliced with any but plain ones.
        device: of the model.

    Raises:
        PruningError: they are unknown, for another executor or another device, or Triton is absent.
    """
    if kernels not in KERNELS:
        raise PruningError(f"kernels {kernels!r} are unknown; choose one of {', '.join(KERNELS)}")
    if kernels == "plain":
        return
    if executor == "masked":
        raise PruningError(
            "kernels triton are for the sliced executor and this is the masked one; choose "
            "--executor sliced or --kernels plain"
        )
    try:
        import triton
    except ImportError:
        raise PruningError(
            "--kernels triton needs Triton; run `pip install 'pgprune[triton]'`"
        ) from None
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise PruningError(
            f"--kernels triton needs a CUDA device and the device is {device}; choose --kernels "
            "plain, or set TRITON_INTERPRET=1 to try them, slowly, in Triton's interpreter"
        )


@contextmanager
def calling(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Lets a module call a function in place of its own ``forward``."""
    own = module.__dict__.get("forward")  # accelerate's hooks put one there
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


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
