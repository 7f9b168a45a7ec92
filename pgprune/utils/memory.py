"""Memory that a run takes, on the host or on the accelerator."""

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from pgprune.errors import ResourceError, first_line

LESS = "choose a smaller --batch-size or --sequence-length, or --dtype bfloat16"
_NO_HOST_MEMORY = "can't allocate memory"  # in what torch says of the host


def peak_memory(device: torch.device) -> int:
    """The most memory in use so far, in bytes: allocated on a GPU, resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # absent on Windows, where nothing here runs on it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_now(device: torch.device) -> int:
    """The memory in use, in bytes; on a host without /proc the most so far."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_memory(device)
    import resource

    return int(statm.read_text().split()[1]) * resource.getpagesize()


@contextmanager
def within_memory(remedy: str = LESS) -> Iterator[None]:
    """Says which setting lowers the memory that the body takes, where there is too little.

    Args:
        remedy: what to do, for the error.

    Yields:
        Nothing.

    Raises:
        ResourceError: there was not enough memory, on an accelerator or on the host.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and _NO_HOST_MEMORY not in str(error):
            raise
        raise ResourceError(
            f"there is not enough memory ({first_line(error)}); {remedy}"
        ) from error


def read_once(tensors: Iterable[Tensor]) -> None:
    """Reads tensors, because weights mapped from a file are in memory only once they are read."""
    for tensor in tensors:
        if tensor.device.type == "cpu":
            tensor.sum()


def memory_of(work: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that a piece of work takes beyond what was in use before it.

    Args:
        work: what to do.
        device: where it is done.

    Returns:
        Bytes: allocated on a GPU, resident on the host; None (and nothing is done) where the
        system cannot forget an earlier peak, as only Linux does.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not _forget_peak():
        return None
    before = memory_now(device)
    work()
    status = Path("/proc/self/status").read_text().partition("VmHWM:")[2]  # " 1234 kB\n..."
    return int(status.split()[0]) * 1024 - before


def _forget_peak() -> bool:
    """Sets the host's peak back to what is in use; returns whether it could."""
    try:
        # Pages that freed tensors have left with the process would hide what is allocated anew.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True
