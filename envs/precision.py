"""How exact products of float32 matrices are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = ("highest", "high", "medium")
"""As torch names them: float32, TF32 or the like, and bfloat16, where a device is faster so."""


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Computes products of float32 matrices with a precision while the body runs.

    Args:
        name: one of ``PRECISIONS``.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
