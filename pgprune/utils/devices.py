"""Chooses devices that are present, and checks their number formats."""

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pgprune.errors import PruningError
from pgprune.utils.process_ids import local_rank, worker
from pgprune.utils.progress import log

_PROCESSES = Path("/proc/loadavg")  # of Linux


def choose_device(name: str) -> torch.device:
    """Returns the device of a name.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        PruningError: there is no such device.
    """
    mps = torch.backends.mps.is_available()
    if name == "auto":
        # An accelerator if there is one.
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda" and (index := local_rank() or worker() % max(1, torch.cuda.device_count())):
        name = f"cuda:{index}"  # one GPU for each process of a host
    present = ["cpu", *(["mps"] if mps else [])]  # for the error
    present += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name not in present and not (name == "cuda" and "cuda:0" in present):
        remedy = "start fewer processes on it" if local_rank() else "or take auto"
        raise PruningError(
            f"there is no device {name!r}; this machine has {', '.join(present)}, {remedy}"
        )
    return torch.device(name)


def machine(device: torch.device, threads: int | None = None) -> dict[str, Any]:
    """Describes what something ran on: the GPU, or cores, threads and SIMD; never a host name."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)}
    capability = torch.backends.cpu.get_cpu_capability()
    used = threads or torch.get_num_threads()
    return {"device": device.type, "cores": os.cpu_count(), "threads": used, "SIMD": capability}


@cache  # says it once
def say_if_busy() -> None:
    """Says that other processes take cores of the CPU which threads of this one would wait for."""
    cores, threads = side_by_side_on_cpu(), torch.get_num_threads()
    free = max(1, cores - _others_running())
    if free < threads:
        log(
            f"other processes use {cores - free} of {cores} cores, and {threads} threads wait for "
            f"the slowest of them; OMP_NUM_THREADS={free} may be much faster"
        )


def _others_running() -> int:
    """Returns how many other processes have been computing for the last minute, and do so now.

    It is 0 where the operating system does not say.
    """
    try:
        minute, _, _, running, *_ = _PROCESSES.read_text().split()
        now = int(running.partition("/")[0]) - 1  # without this one
        return max(0, min(round(float(minute)), now))
    except (OSError, ValueError):
        return 0


def side_by_side_on_cpu() -> int:
    """Returns how many processes can compute on the CPU without sharing a core."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))  # a container may allow fewer cores than there are
    return os.cpu_count() or 1  # None if unknown


def side_by_side(name: str) -> int:
    """Returns how many processes can use a device without sharing a GPU, or a CPU core.

    Args:
        name: as ``choose_device`` takes it; ``auto`` and ``cuda`` stand for all GPUs.

    Raises:
        PruningError: there is no such device.
    """
    device = choose_device(name)
    if device.type == "cpu":
        return side_by_side_on_cpu()
    # One process for each GPU.
    return torch.cuda.device_count() if name in ("auto", "cuda") and device.type == "cuda" else 1


def check_dtype(dtype: torch.dtype | str | None, device: torch.device) -> None:
    """Checks that a device has a number format. None and ``auto`` pass.

    Raises:
        PruningError: the device lacks the format.
    """
    if dtype == torch.float64 and device.type == "mps":
        raise PruningError("mps devices have no float64; choose another dtype or device cpu")
    if dtype == torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise PruningError(
            f"the device {device} has no bfloat16; choose --dtype float16 or float32"
        )
