"""Memory that a run takes, on the host or on the accelerator."""

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor


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


def read_once(tensors: Iterable[Tensor]) -> None:
    """Reads tensors, because weights mapped from a file are in memory only once they are read."""
    for tensor in tensors:
        if tensor.device.type == "cpu":
            tensor.sum()
