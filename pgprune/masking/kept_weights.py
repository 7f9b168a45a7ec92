"""Lets the projections of a layer multiply by kept rows or columns of their weights only.

``plain`` gathers kept rows into a new matrix that takes the place of the weight. ``triton``
(experimental) leaves the weight where it is and reads kept rows by index. Both give the same result
up to rounding.

Rows are contiguous in memory and columns are not, so projections whose inputs are pruned are stored
transposed. Matrix kernels are fast where widths fill whole cache lines (on a CPU, a product with
1,029 outputs takes 1.5 times as long as one with 1,040), so wide matrices end in rows of zeros.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgprune.errors import PruningError
from pgprune.models.families import linear_at
from pgprune.models.family import Family
from pgprune.utils.transfer import send

_LINE_BYTES = 64  # the width of a wide gathered matrix is a multiple of this
_LEAST_LINES = 16  # narrower ones stay as they are, so at most a sixteenth of the rows is zero


class KeptWeight(NamedTuple):
    """The kept rows or columns of one projection's weight.

    Attributes:
        projection: the module.
        kept: indices of the kept rows, or columns, of its weight, (r,) int64.
        size: rows or columns of the result, at least r; those beyond r are zero.
        columns: whether columns are kept, else rows.
        constant: added to the output where columns are kept, (D,), bias included; None for nothing.
        refitted: the kept columns with other values, (D, r); None for those of the weight.
    """

    projection: nn.Linear
    kept: Tensor
    size: int
    columns: bool = False
    constant: Tensor | None = None
    refitted: Tensor | None = None


Products = Callable[[Sequence[KeptWeight]], AbstractContextManager[None]]
"""Lets projections multiply by kept weights only while the body runs."""


@contextmanager
def gathered(weights: Sequence[KeptWeight]) -> Iterator[None]:
    """Puts gathered matrices in the place of the projections' weights."""
    # Writing into _parameters skips the checks of nn.Module, which take longer than a small copy.
    modules = [weight.projection._parameters for weight in weights]
    dense = [dict(parameters) for parameters in modules]
    try:
        for weight, parameters in zip(weights, modules, strict=True):
            parameters |= _gathered_parameters(weight, parameters)
        yield
    finally:
        for parameters, before in zip(modules, dense, strict=True):
            parameters |= before


def _gathered_parameters(kept: KeptWeight, dense: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a projection after gathering, by name."""
    weight, bias = dense["weight"], dense["bias"]
    if kept.columns:  # stored transposed, see lay_out: columns are rows in memory
        gathered = {"weight": _columns_of(kept, weight)}
        return gathered if kept.constant is None else gathered | {"bias": kept.constant}
    gathered = {"weight": gather(weight, kept.kept, kept.size)}
    return gathered if bias is None else gathered | {"bias": gather(bias, kept.kept, kept.size)}


def _columns_of(kept: KeptWeight, weight: Tensor) -> Tensor:
    """Returns the kept columns of a weight, or their other values: (D, size)."""
    if kept.refitted is None:
        return gather(weight.t(), kept.kept, kept.size).t()
    columns = send(kept.refitted, weight.device)  # (D, r)
    return F.pad(columns, (0, kept.size - columns.shape[1]))


@contextmanager
def indexed(weights: Sequence[KeptWeight]) -> Iterator[None]:
    """Lets the projections call Triton kernels that read kept weights by index; experimental."""
    from pgprune.masking.kernels import columns_product, rows_product  # these import Triton

    with ExitStack() as stack:
        for projection, kept, size, columns, constant, _ in weights:
            weight, index = projection.weight, kept.to(projection.weight.device)
            if columns:
                product = partial(columns_product, weight=weight, columns=index, bias=constant)
            else:
                bias = projection.bias
                product = partial(rows_product, weight=weight, rows=index, bias=bias, size=size)
            stack.enter_context(calling(projection, product))
        yield


KERNELS: dict[str, Products] = {"plain": gathered, "triton": indexed}
"""The ways to multiply by kept weights, by name."""


def check_kernels(kernels: str, executor: str, device: torch.device) -> None:
    """Checks that an executor can use kernels on a device.

    Args:
        kernels: a name in ``KERNELS``.
        executor: ``masked``, ``sliced``, or ``auto``, which becomes sliced with triton.
        device: of the model.

    Raises:
        PruningError: unknown kernels, the wrong executor or device for them, or no Triton.
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
    """Lets a module call a function in place of its own ``forward`` while the body runs."""
    before = module.__dict__.get("forward")  # hooks of accelerate set one on the instance
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@torch.no_grad()
def lay_out(layers: Iterable[nn.Module], family: Family) -> None:
    """Stores the weights of output and down projections transposed in memory, in place.

    Shapes and values stay; only strides change. There is no second copy of the weights, and the
    model works as before.
    """
    for layer in layers:
        ends = {"heads", "channels"} & family.projections.keys()
        for path in (family.of(layer).projections[kind] for kind in ends):
            weight = linear_at(layer, path).weight
            weight.data = weight.data.t().contiguous().t()


def aligned(count: int, dtype: torch.dtype) -> int:
    """Rounds a number of rows up to whole cache lines, where it is large enough."""
    line = _LINE_BYTES // dtype.itemsize
    return count if count < _LEAST_LINES * line else -(-count // line) * line


def gather(rows: Tensor, kept: Tensor, size: int) -> Tensor:
    """Copies the kept rows (r,) of (R, ...) and appends zeros: (size, ...)."""
    kept, count = kept.to(rows.device), len(kept)
    if count == size:
        return rows.index_select(0, kept)
    gathered = rows.new_empty(size, *rows.shape[1:])
    torch.index_select(rows, 0, kept, out=gathered[:count])
    gathered[count:].zero_()  # unset memory may hold NaN, and 0 * NaN is NaN
    return gathered
