"""Multiplies by kept rows or columns of a weight, read by index inside a Triton kernel.

Experimental: tested in Triton's interpreter, but not measured on a GPU yet.

Nothing is gathered: the kernel reads each kept row in place. Block shapes are fixed by the number
format and never tuned by timing, because other shapes add in another order, and a repeated run must
give the same masks. Importing this module needs Triton.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter on the CPU (TRITON_INTERPRET=1)."""

_ACCUMULATORS = {torch.float64: tl.float64}  # all other formats add in float32


@triton.jit
def product_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    kept: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    inputs: tl.tensor,
    outputs: tl.tensor,
    weight_inputs: tl.tensor,
    weight_outputs: tl.tensor,
    x_stride: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    out_stride: tl.tensor,
    ROWS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Computes a block (BLOCK_M, BLOCK_N) of ``x @ weight[kept].T`` or ``x @ weight[:, kept].T``.

    Args:
        x: (tokens, inputs), rows contiguous.
        weight: (rows, columns).
        kept: indices of the weight's rows if ``ROWS``, else of its columns.
        bias: one number for each row of the weight, or None.
        out: (tokens, outputs), rows contiguous.
        tokens: rows of the result.
        inputs: columns of ``x``.
        outputs: columns of the result.
        weight_inputs: inputs that have weights; the weights of the others are zero.
        weight_outputs: outputs that have weights, likewise.
        x_stride: distance of rows of ``x``.
        row_stride: distance of rows of the weight.
        column_stride: distance of columns of the weight.
        out_stride: distance of rows of ``out``.
        ROWS: whether rows are kept, or columns.
        ACCUMULATOR: number format that products are added in.
        BLOCK_M: tokens of a block.
        BLOCK_N: outputs of a block.
        BLOCK_K: inputs that are read together.
    """
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = n.to(tl.int64)
    if ROWS:
        rows = tl.load(kept + n, mask=n < weight_outputs, other=0)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACCUMULATOR)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        columns = k.to(tl.int64)
        if not ROWS:
            columns = tl.load(kept + k, mask=k < weight_inputs, other=0)
        states = tl.load(
            x + m[:, None] * x_stride + k[None, :],
            mask=(m < tokens)[:, None] & (k < inputs)[None, :],
            other=0,
        )
        weights = tl.load(
            weight + rows[None, :] * row_stride + columns[:, None] * column_stride,
            mask=(n < weight_outputs)[None, :] & (k < weight_inputs)[:, None],
            other=0,
        )
        total = tl.dot(states, weights, total, input_precision="ieee", out_dtype=ACCUMULATOR)
    if bias is not None:
        total += tl.load(bias + rows, mask=n < weight_outputs, other=0)[None, :].to(ACCUMULATOR)
    tl.store(
        out + m[:, None] * out_stride + n[None, :],
        total.to(out.dtype.element_ty),
        mask=(m < tokens)[:, None] & (n < outputs)[None, :],
    )


def rows_product(
    x: Tensor, weight: Tensor, rows: Tensor, bias: Tensor | None = None, size: int | None = None
) -> Tensor:
    """Computes ``F.linear(x, weight[rows], bias[rows])`` and appends zeros.

    Args:
        x: (..., D).
        weight: (R, D) on the same device, fastest where its rows are contiguous.
        rows: indices of rows, (r,) int64 on the same device.
        bias: (R,), or None.
        size: outputs, at least r; None for r.

    Returns:
        (..., size).
    """
    outputs = len(rows) if size is None else size
    return _product(x, weight, rows, bias, outputs, by_rows=True)


def columns_product(
    x: Tensor, weight: Tensor, columns: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Computes ``F.linear(x[..., :c], weight[:, columns], bias)``.

    Args:
        x: (..., at least c), finite; inputs after the first c are multiplied by zero.
        weight: (D, R) on the same device, fastest where its columns are contiguous.
        columns: indices of columns, (c,) int64 on the same device.
        bias: (D,), or None.

    Returns:
        (..., D).
    """
    return _product(x, weight, columns, bias, weight.shape[0], by_rows=False)


def launch_options(dtype: torch.dtype, interpreted: bool) -> dict[str, Any]:
    """Returns block shapes, warps and stages of the kernel for a number format."""
    options: dict[str, Any] = {"ACCUMULATOR": _ACCUMULATORS.get(dtype, tl.float32)}
    if interpreted:
        return options | {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32}
    options["enable_fp_fusion"] = True  # explicit, since Triton's default may change
    if dtype.itemsize == 2:
        shape = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}
        return options | shape | {"num_warps": 8, "num_stages": 3}
    return options | {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32} | {"num_stages": 2}


def _product(
    x: Tensor, weight: Tensor, kept: Tensor, bias: Tensor | None, outputs: int, by_rows: bool
) -> Tensor:
    """Runs the kernel: (..., inputs) -> (..., outputs)."""
    # The interpreter multiplies the bits of bfloat16 as integers, so it gets float32.
    if INTERPRETED and x.dtype == torch.bfloat16:
        wide = None if bias is None else bias.float()
        return _product(x.float(), weight.float(), kept, wide, outputs, by_rows).to(x.dtype)
    result = x.new_empty(*x.shape[:-1], outputs)
    if not result.numel():
        return result
    states = x.flatten(0, -2).contiguous()  # (tokens, inputs)
    inputs = states.shape[1]
    launch: Any = product_kernel
    options = launch_options(x.dtype, INTERPRETED)
    blocks = (
        triton.cdiv(len(states), options["BLOCK_M"]),
        triton.cdiv(outputs, options["BLOCK_N"]),
    )
    with torch.cuda.device_of(x):  # a kernel starts on the current device
        launch[blocks](
            states,
            weight,
            kept,
            bias,
            result,
            len(states),
            inputs,
            outputs,
            inputs if by_rows else len(kept),
            len(kept) if by_rows else outputs,
            states.stride(0),
            weight.stride(0),
            weight.stride(1),
            outputs,
            ROWS=by_rows,
            **options,
        )
    return result
