"""Which devices there are, and which number formats they have."""

import torch

from pgprune.errors import PruningError
from pgprune.ranks import local_rank


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
    if name == "cuda" and local_rank():  # each process of a host has a GPU of its own
        name = f"cuda:{local_rank()}"
    present = ["cpu", *(["mps"] if mps else [])]
    present += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name not in present and not (name == "cuda" and "cuda:0" in present):
        remedy = "start fewer processes on it" if local_rank() else "or take auto"
        raise PruningError(
            f"there is no device {name!r}; this machine has {', '.join(present)}, {remedy}"
        )
    return torch.device(name)


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
