"""Copies tensors between the host and a device with as few waits as possible.

A device works through its queue while the host continues. If the host waits for a copy, it waits
for the whole queue, and the device then has no work.
"""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to a device without waiting for the device's queue."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # Only pinned memory is copied asynchronously.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def read(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Copies tensors to the host with one wait for their device."""
    copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)
    devices = {tensor.device for tensor in tensors if tensor.device.type != "cpu"}
    for device in devices:
        torch.accelerator.synchronize(device)  # the copies are complete after it
    return copies
