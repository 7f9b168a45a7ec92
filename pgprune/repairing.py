"""Repair as a stage of its own: which one is wanted, and what it costs in parameters."""

from dataclasses import dataclass, field

from torch import Tensor

from pgprune.masked_lm import MaskedLM
from pgprune.repair import DAMPING, REPAIRS, Repair, repair

REPAIR = "repair.safetensors"
"""The file of a run that holds its repair."""


@dataclass(frozen=True)
class RepairConfig:
    """Repair: how weights or biases of what is kept make up for what is gone."""

    repair: str = field(
        default="auto",
        metadata={
            "help": "biases that stand for the mean of what is gone (bias), output and down "
            "projections refitted in closed form (least-squares), nothing (none), or what the "
            "method itself brings, which for most is nothing (auto)",
            "choices": ["auto", "none", *REPAIRS],
        },
    )
    repair_damping: float = field(
        default=DAMPING,
        metadata={
            "help": "least-squares: damping, relative to the mean square of an input",
            "minimum": 0,
        },
    )


def repaired(
    lm: MaskedLM, mask: Tensor, windows: Tensor, config: RepairConfig, own: Repair | None = None
) -> Repair | None:
    """The repair that is wanted.

    Args:
        lm: the frozen model.
        mask: (n,) of zeros and ones.
        windows: calibration token ids, (N, T).
        config: which one.
        own: what the method brings.

    Returns:
        The repair; None if there is none.
    """
    if config.repair == "auto":
        return own
    if config.repair == "none":
        return None
    return repair(lm, mask, windows, config.repair, config.repair_damping)


def added_parameters(lm: MaskedLM, repair: Repair | None) -> int:
    """Parameters of the biases that a repair adds where the model has none."""
    biases = repair.biases if repair is not None else {}
    return sum(len(bias) for key, bias in biases.items() if lm.linear(*key).bias is None)
