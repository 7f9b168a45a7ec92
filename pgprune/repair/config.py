"""Options of repair, and the parameters that a repair adds."""

from dataclasses import dataclass

from torch import nn

from pgprune.masking.units import PruningUnits
from pgprune.models.families import projection_of
from pgprune.repair.fit import DAMPING, REPAIRS
from pgprune.repair.projection import KINDS
from pgprune.repair.repair import Repair
from pgprune.utils.options import Config, option


@dataclass(frozen=True)
class RepairConfig(Config):
    """Repair: kept weights or biases are refitted to compensate for pruned ones."""

    repair: str = option(
        "auto",
        "closed-form repair of kept weights; auto is the method's own, mostly none",
        choices=["auto", "none", *REPAIRS],
    )
    repair_damping: float | str = option(
        DAMPING,
        "damping of weights relative to an input's mean square, or auto (held out)",
        minimum=0,
        words=("auto",),
    )
    repair_samples: int | None = option(
        None,
        "calibration windows of the repair and of levels, if there are as many",
        minimum=1,
        unset="those of the metric or method",
    )
    repair_errors: str = option(
        "absolute",
        "errors of a token count as they are, or relative to its hidden state",
        choices=["absolute", "relative"],
    )

    @property
    def chooses_damping(self) -> bool:
        """Whether held-out windows choose the damping."""
        return self.repair_damping == "auto"

    @property
    def damping(self) -> float:
        """The damping where held-out windows do not choose it."""
        return DAMPING if isinstance(self.repair_damping, str) else self.repair_damping


def repair_name(repair: Repair | None) -> str:
    """Returns the choice of ``RepairConfig`` that a repair comes from."""
    if repair is None or not (repair.weights or repair.biases):
        return "none"
    if not repair.weights:
        return "bias"
    return "alternating" if any(kind == "up" for _, kind in repair.weights) else "least-squares"


def describe(config: RepairConfig) -> str:
    """Describes a repair in a few words."""
    if config.repair not in ("least-squares", "alternating"):
        return config.repair
    chosen = "by held-out text" if config.chooses_damping else f"{config.damping:g}"
    return f"{config.repair}, damping {chosen}"


def adds_biases(model: nn.Module, units: PruningUnits, how: str, own: Repair | None = None) -> bool:
    """Tells if a repair gives biases to projections that have none.

    Args:
        model: the dense model.
        units: of the model.
        how: a choice of ``RepairConfig``.
        own: the repair that ``auto`` stands for.
    """
    if how == "auto":
        return added_parameters(model, own) > 0
    kinds = {group.projection for group in units.groups}.intersection(KINDS)
    keys = ((layer, kind) for layer in range(units.layers) for kind in kinds)
    return how == "bias" and any(_lacks_bias(model, key) for key in keys)


def added_parameters(model: nn.Module, repair: Repair | None) -> int:
    """Counts the parameters of the biases that a repair adds where the model has none."""
    biases = repair.biases if repair is not None else {}
    return sum(len(bias) for key, bias in biases.items() if _lacks_bias(model, key))


def _lacks_bias(model: nn.Module, key: tuple[int, str]) -> bool:
    linear = projection_of(model, *key)
    return linear is not None and linear.bias is None
