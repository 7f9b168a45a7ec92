"""Which devices there are, and which number formats they have."""

import os

import torch

from pgprune.errors import PruningError
from pgprune.utils.process_ids import local_rank, worker


def choose_device(name: str) -> torch.device:
    """Turns a device's name into a device that is present.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        PruningError: there is no such device.
    """
    mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda" and (index := local_rank() or worker() % max(1, torch.cuda.device_count())):
        name = f"cuda:{index}"  # each process of a host has a GPU of its own
    present = ["cpu", *(["mps"] if mps else [])]
    present += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name not in present and not (name == "cuda" and "cuda:0" in present):
        remedy = "start fewer processes on it" if local_rank() else "or take auto"
        raise PruningError(
            f"there is no device {name!r}; this machine has {', '.join(present)}, {remedy}"
        )
    return torch.device(name)


def side_by_side(name: str) -> int:
    """How many processes can work on a device without sharing a GPU, or a CPU core.

    Args:
        name: as ``choose_device`` takes it; ``auto`` and ``cuda`` stand for all GPUs.

    Raises:
        PruningError: there is no such device.
    """
    device = choose_device(name)
    if device.type == "cpu" and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))  # cores that this process may use
    if device.type == "cpu":
        return os.cpu_count() or 1
    return torch.cuda.device_count() if name in ("auto", "cuda") and device.type == "cuda" else 1


def check_dtype(dtype: torch.dtype | str | None, device: torch.device) -> None:
    """Makes sure that a device has a number format; all have one that is not decided yet.

    Raises:
        PruningError: it lacks it.
    """
    if dtype == torch.float64 and device.type == "mps":
        raise PruningError("mps devices have no float64; choose another dtype or device cpu")
    if dtype == torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise PruningError(
            f"the device {device} has no bfloat16; choose --dtype float16 or float32"
        )
