"""Chooses the executor of a run, once, from counted work, by a pure function.

The counts are exact and the rates of devices are rough, so the choice is right where it matters, in
large layers, and arbitrary where both executors take about the same time.
"""

from dataclasses import dataclass

import torch

from pgprune.masking.units import PruningUnits
from pgprune.models.shapes import LayerShape


@dataclass(frozen=True)
class DeviceRates:
    """Rough speed of a kind of device, per second.

    Attributes:
        operations: floating-point operations of matrix products in float32.
        bytes: bytes copied.
        overhead: seconds of one more call of a decoder layer with other weights.
    """

    operations: float
    bytes: float
    overhead: float


MOST_COPIED = 512 * 2**20
"""Limit of the bytes of one layer's gathered weights, so that a run stays within 1 GiB."""

DEVICE_RATES = {
    "cpu": DeviceRates(operations=6e10, bytes=6e9, overhead=1.5e-4),
    "cuda": DeviceRates(operations=2e14, bytes=1e12, overhead=9e-4),  # docs/performance.md
    "mps": DeviceRates(operations=3e12, bytes=1e11, overhead=5e-4),
}


def choose_executor(
    units: PruningUnits, prune_rate: float, masks: int, tokens: int, dtype: torch.dtype, device: str
) -> str:
    """Returns the executor, ``masked`` or ``sliced``, that is cheaper by counted cost.

    Args:
        units: the units, which carry the layer shapes.
        prune_rate: share of the prunable parameters removed.
        masks: masks evaluated per step (K).
        tokens: tokens of one batch (B * T).
        dtype: number format of the weights.
        device: device type: ``cpu``, ``cuda`` or ``mps``.
    """
    if "experts" in units.kinds:  # a token uses as many of them under any mask
        return "masked"
    rates = DEVICE_RATES.get(device, DEVICE_RATES["cpu"])
    largest = max(_kept_weights(shape, units, prune_rate) for shape in units.shapes)
    if largest * dtype.itemsize > MOST_COPIED:  # gathered copies do not fit
        return "masked"
    saved = sliced = 0.0
    # The share of the layers' work that masks can prune.
    share = units.prunable / sum(s.attention_cost + s.mlp_cost for s in units.shapes)
    for shape in units.shapes:
        # Slicing saves the arithmetic of pruned weights, and adds a copy of the kept ones and the
        # overhead of a layer call, for each mask.
        work = 2 * tokens * (shape.attention_cost + shape.mlp_cost) / rates.operations
        saved += masks * prune_rate * share * work
        copied = 2 * dtype.itemsize * _kept_weights(shape, units, prune_rate)  # read and written
        sliced += masks * (rates.overhead + copied / rates.bytes)
    return "sliced" if sliced < saved else "masked"


def _kept_weights(shape: LayerShape, units: PruningUnits, prune_rate: float) -> float:
    """Counts the weights that one layer gathers for one mask."""
    weights = 0
    if "heads" in units.kinds:
        weights += shape.kv_heads * shape.kv_group_cost
    if "values" in units.kinds:
        weights += shape.kv_heads * shape.head_dim * shape.value_cost
    if "channels" in units.kinds:
        weights += shape.channels * shape.channel_cost
    return (1 - prune_rate) * weights
