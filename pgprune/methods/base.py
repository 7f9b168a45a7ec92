"""What every pruning method takes and gives: one call from a problem to a mask."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pgprune.errors import PruningError
from pgprune.masking.budget import BUDGETS
from pgprune.masking.problem import Problem
from pgprune.masking.units import GRANULARITIES
from pgprune.metrics import FITS, Importance
from pgprune.metrics.bonsai import FRACTION, JUDGED_ON, MASKS
from pgprune.metrics.flap import FLUCTUATIONS
from pgprune.metrics.llm_pruner import TAYLOR
from pgprune.repair.repair import Repair
from pgprune.surgery.stream_slices import Slices
from pgprune.utils.options import Config, option

_FINE = ("heads+channels", "heads", "channels")

GRANULARITY: dict[str, tuple[str, ...]] = {
    **FITS,
    "sleb": ("layers", "blocks"),
    "2ssp": ("heads+channels",),
    **dict.fromkeys(("ziplm", "osscar", "spap"), _FINE),
    **dict.fromkeys(("gumbel-softmax", "hard-concrete"), tuple(GRANULARITIES)),
    "slicegpt": ("heads+channels",),
}
"""The granularities that fit each method; the first is the method's own."""

BUDGET: dict[str, tuple[str, ...]] = {
    "flap": ("parameters", "per-kind", "units"),
    "2ssp": ("parameters",),
}
"""The budgets that fit a method, where these are not all; the first is the method's own."""

SLICING = ("slicegpt",)
"""Methods that make layers narrower instead of pruning units."""


@dataclass(frozen=True)
class Pruned:
    """What a method has decided.

    Attributes:
        mask: (n,) uint8, 1 keeps; within the budget.
        importance: the scores that the mask was rounded from, where there are any.
        repair: weights and biases that belong to the mask, where the method changes them.
        slices: what is kept of the residual stream, where the method slices it; its mask keeps
            all.
        notes: figures of the method's own for results.json, as JSON can hold them.
    """

    mask: Tensor
    importance: Importance | None = None
    repair: Repair | None = None
    slices: Slices | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodConfig(Config):
    """Method: which one, and the knobs of its own.

    Raises:
        PruningError: a value that its field does not allow.
    """

    method: str = option(
        "wanda-sp", "metric or method that chooses the mask", choices=list(GRANULARITY)
    )
    method_samples: int = option(128, "calibration windows of the method", minimum=1)
    protect_layers: bool = option(
        True, "llm-pruner, layerwise-taylor, magnitude: protect the outermost layers"
    )
    taylor: str = option(
        "element-first",
        "llm-pruner: terms of the Taylor expansion that are summed",
        choices=list(TAYLOR),
    )
    fluctuation: str = option(
        "variance",
        "flap: the paper's variance, or what the released code computes",
        choices=list(FLUCTUATIONS),
    )
    barrier: int = option(1, "sleb: layers at each end that are never pruned", minimum=0)
    learning_timesteps: int = option(
        2000,
        "gumbel-softmax, hard-concrete: passes over the model, on 1,024 tokens each",
        minimum=1,
    )
    learning_step: float | None = option(
        None, "gumbel-softmax, hard-concrete: step size of Adam", above=0, unset="the method's own"
    )
    bonsai_masks: int = option(
        MASKS, "bonsai: sub-models per round, in antithetic pairs", minimum=10
    )
    bonsai_windows: int = option(
        JUDGED_ON, "bonsai: windows that sub-models are evaluated on", minimum=1
    )
    bonsai_fraction: float = option(
        FRACTION, "bonsai: share of the units that a round prunes", above=0, maximum=0.5
    )
    slice_fraction: float | None = option(
        None,
        "slicegpt: share of the residual stream to cut off",
        minimum=0,
        below=1,
        unset="what the prune rate needs",
    )


Method = Callable[[Problem, Tensor, int, MethodConfig], Pruned]
"""A method: (problem, calibration windows (N, T), seed, its knobs) -> what it has decided."""


def check_fits(name: str, problem: Problem) -> None:
    """Makes sure that a method works on the units and the budget of a problem.

    Raises:
        PruningError: it does not; the message names those it works on.
    """
    asked = {
        "granularity": (problem.units.granularity, GRANULARITY[name]),
        "budget": (problem.budget.kind, BUDGET.get(name, BUDGETS)),
    }
    for what, (value, fitting) in asked.items():
        if value not in fitting:
            raise PruningError(
                f"method {name} does not fit {what} {value!r}; choose {' or '.join(fitting)}"
            )
