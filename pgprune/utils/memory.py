"""Measures the memory of a run, on the host or on the accelerator."""

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from pgprune.errors import ResourceError, first_line

LESS = "choose a smaller --batch-size or --sequence-length, or --dtype bfloat16"
_NO_HOST_MEMORY = "can't allocate memory"  # part of torch's message about the host


def peak_memory(device: torch.device) -> int:
    """Returns the peak memory so far in bytes: allocated on a GPU, resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS has bytes, Linux kilobytes


def memory_now(device: torch.device) -> int:
    """Returns the memory in use in bytes; on a host without /proc the peak so far."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_memory(device)
    import resource

    return int(statm.read_text().split()[1]) * resource.getpagesize()  # resident pages


def free_memory(device: torch.device) -> int | None:
    """Returns how many bytes are free on a device; None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.exists():
        return None
    found = dict(line.split(":", 1) for line in table.read_text().splitlines())
    return int(found["MemAvailable"].split()[0]) * 1024  # " 1234 kB"


@contextmanager
def within_memory(remedy: str = LESS) -> Iterator[None]:
    """Turns a lack of memory in the body into an error that names a remedy.

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
    """Reads tensors, since weights mapped from a file are in memory only after they are read."""
    for tensor in tensors:
        if tensor.device.type == "cpu":
            tensor.sum()  # touches every page


def memory_of(work: Callable[[], object], device: torch.device) -> int | None:
    """Measures the peak memory of work, beyond the memory in use before it.

    Returns:
        Bytes: allocated on a GPU, resident on the host; None, without a call, where the system
        cannot reset the peak. On a CPU only Linux can.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)  # weights and the like
        work()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu" or not _forget_peak():
        return None
    before = memory_now(device)
    work()
    status = Path("/proc/self/status").read_text().partition("VmHWM:")[2]  # " 1234 kB\n..."
    return int(status.split()[0]) * 1024 - before


def give_back() -> None:
    """Gives pages of freed tensors back to the system, where its C library can (Linux)."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _forget_peak() -> bool:
    """Resets the host's peak to the memory in use; returns whether it succeeded."""
    give_back()  # pages that stay with the process would hide new allocations
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except OSError:
        return False
    return True
