"""Tensors between the host and a device, without waiting more than needed.

A device works through what it was given while the host goes on. Every copy that the host waits for
makes it wait for all of that, and leaves the device without work afterwards.
"""

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for what the device still has to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def read(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one device on the host, waiting for the device once."""
    copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)
    devices = {tensor.device for tensor in tensors if tensor.device.type != "cpu"}
    for device in devices:
        torch.accelerator.synchronize(device)
    return copies
