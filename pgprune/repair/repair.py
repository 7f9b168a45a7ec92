"""Repair: weights or biases of what a mask keeps, refitted in closed form, without gradients."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import Group
from pgprune.models.families import Family
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.projection import KINDS, Projection
from pgprune.repair.refit import (
    Solution,
    best_in_turns,
    best_weights,
    holding,
    mean_bias,
    refit_layers,
)
from pgprune.utils.files import tensor_bytes, write_file

REPAIRS = ("bias", "least-squares", "alternating")
DAMPING = 1e-2


@dataclass(frozen=True)
class Repair:
    """What repair changes, by layer and kind.

    The kind ``heads`` is the attention output projection, ``channels`` the MLP down projection,
    ``up`` the up projection of a gated MLP, whose outputs are channels.

    Attributes:
        weights: new weights of the dense shape, (outputs, inputs), zero for what is pruned; on the
            CPU.
        biases: new biases, (outputs,), in place of the projection's own, if it has one; on the CPU.
    """

    weights: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    biases: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def parameters(self, layer: int, family: Family) -> dict[str, Tensor]:
        """What it puts into one layer, by the names of the layer's parameters.

        Args:
            layer: index of the layer.
            family: of the model.
        """
        paths = {"heads": family.output, "channels": family.down, "up": family.expand[-1]}
        parts = {"weight": self.weights, "bias": self.biases}
        return {
            f"{path}.{name}": part[layer, kind]
            for kind, path in paths.items()
            for name, part in parts.items()
            if (layer, kind) in part
        }

    def save(self, path: Path) -> None:
        """Writes a safetensors file.

        Raises:
            OSError: the disk is full or refuses; a previous file stays as it was.
        """
        parts = {"weight": self.weights, "bias": self.biases}
        tensors = {
            f"{layer}.{kind}.{name}": tensor
            for name, part in parts.items()
            for (layer, kind), tensor in part.items()
        }
        write_file(path, tensor_bytes(tensors))

    @classmethod
    def load(cls, path: Path) -> "Repair":
        """Reads what ``save`` wrote.

        Raises:
            PruningError: the file is missing, damaged or something else.
        """
        repair = cls()
        parts = {"weight": repair.weights, "bias": repair.biases}
        try:
            for key, tensor in load_file(path).items():
                layer, kind, name = key.split(".")
                parts[name][int(layer), kind] = tensor
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise PruningError(
                f"the repair {str(path)!r} is missing or damaged; prune again to make it anew"
            ) from error
        return repair


@contextmanager
def applied(lm: MaskedLM, repair: Repair) -> Iterator[None]:
    """Puts a repair into a model for a while; it belongs to a mask, which is still needed.

    The dense parameters are set aside and put back, untouched.

    Args:
        lm: the frozen model.
        repair: what to put into it.

    Yields:
        Nothing.

    Raises:
        PruningError: the repair is of another model.
    """
    check_repair(lm, repair)
    with ExitStack() as stack:
        for key in sorted(repair.weights.keys() | repair.biases.keys()):
            new = repair.weights.get(key), repair.biases.get(key)
            stack.enter_context(holding(lm.linear(*key), *new))
        yield


@torch.no_grad()
def repair(
    lm: MaskedLM, mask: Tensor, windows: Tensor, how: str, damping: float = DAMPING
) -> Repair:
    """Refits what a mask keeps, layer by layer on the activations of the pruned, repaired model.

    ``bias`` gives back what pruned inputs add on average: b + W mean(x), over the pruned x. FLAP,
    whose idea it is, takes the dense model's means; here they are of the inputs that the projection
    gets in the pruned model.

    ``least-squares`` refits the weights, and the bias where there is one already, so that the
    hidden states after each block come as near as they can to those of the dense model. What
    earlier layers got wrong is part of this target, so blocks that lost nothing make up for those
    that are gone. A projection that lost all its inputs keeps its bias only, if it has one.

    ``alternating`` does the same, and refits the down and up projections of gated MLPs in turns, as
    ``pgprune.repair.gated_mlp`` describes. It holds the activations of one MLP for all the text.

    Args:
        lm: the frozen model.
        mask: (n,) of zeros and ones, 1 keeps.
        windows: calibration token ids, (N, T).
        how: ``bias``, ``least-squares`` or ``alternating``.
        damping: of the last two, relative to the mean square of an input.

    Returns:
        The repair, in the model's number format.

    Raises:
        PruningError: an unknown ``how``, a mask over other units, no text, a damping below 0 or
            not finite, activations that overflow, singular second moments without damping.
    """
    if how not in REPAIRS:
        raise PruningError(f"repair {how!r} is unknown; choose one of {', '.join(REPAIRS)}")
    if mask.shape != (lm.units.n,):
        raise PruningError(f"the mask must have shape ({lm.units.n},), got {tuple(mask.shape)}")
    _check_damping(damping)
    if how == "bias":
        return _collect(lm, refit_layers(lm, mask, windows, _bias, "projection"))

    def solve(projection: Projection) -> Solution:
        if projection.intact:
            return {}
        if how == "alternating" and _alternates(projection):
            return best_in_turns(projection, damping)
        return best_weights(projection, projection.least_squares(damping))

    return _collect(lm, refit_layers(lm, mask, windows, solve, "stream"))


@torch.no_grad()
def choose_and_refit(
    lm: MaskedLM,
    windows: Tensor,
    choose: Callable[[LeastSquares, Group], Tensor],
    target: str = "projection",
    damping: float = DAMPING,
    alternating: bool = False,
) -> tuple[Tensor, Repair]:
    """Prunes projection by projection, refitting each before the next one is looked at.

    Args:
        lm: the frozen model; its units are heads, channels or both.
        windows: calibration token ids, (N, T).
        choose: which units of a group to keep, (units,) bool.
        target: as in ``refit_layers``.
        damping: as in ``repair``.
        alternating: gated MLPs are refitted as by that repair.

    Returns:
        The mask, (n,) uint8, and the repair.

    Raises:
        PruningError: as ``repair``.
    """
    _check_damping(damping)
    mask = lm.units.ones()
    lm.meter.add(alternating * windows.numel())  # layers run once more, for the gates

    def solve(projection: Projection) -> Solution:
        group = projection.group
        if group is None:
            return {}
        problem = projection.least_squares(damping)
        mask[group.start : group.stop] = choose(problem, group).to(mask)
        if alternating and _alternates(projection):
            del problem
            return best_in_turns(projection, damping)
        return best_weights(projection, problem)

    repair = _collect(lm, refit_layers(lm, mask, windows, solve, target))
    return mask, repair


def _bias(projection: Projection) -> Solution:
    return {} if projection.kept.all() else mean_bias(projection)


def _alternates(projection: Projection) -> bool:
    """Whether there are kept channels of a gated MLP."""
    gated = projection.lm.gated and projection.kind == "channels"
    return gated and bool(projection.kept.any())


def _collect(lm: MaskedLM, refits: Iterator[tuple[int, Solution]]) -> Repair:
    """The repair that the solutions of all projections are."""
    repair = Repair()
    for layer, solution in refits:
        for kind, (weight, bias) in solution.items():
            if weight is not None:
                repair.weights[layer, kind] = weight.to("cpu", lm.dtype)
            if bias is not None:
                repair.biases[layer, kind] = bias.to("cpu", lm.dtype)
    return repair


def _check_damping(damping: float) -> None:
    if not 0 <= damping < float("inf"):
        raise PruningError(f"damping {damping!r} is not a number from 0; try {DAMPING}")


def check_repair(lm: MaskedLM, repair: Repair) -> None:
    """Makes sure that a model has the projections that a repair is of.

    Args:
        lm: the model.
        repair: what may be put into it.

    Raises:
        PruningError: the repair is of another model.
    """
    for layer, kind in sorted(repair.weights.keys() | repair.biases.keys()):
        _check_fit(lm, layer, kind, repair)


def _check_fit(lm: MaskedLM, layer: int, kind: str, repair: Repair) -> None:
    """Makes sure that there is such a projection, and that it has the shape."""
    kinds = (*KINDS, "up") if lm.gated else KINDS
    fits = layer < lm.units.layers and kind in kinds
    if fits:
        shape = lm.projection(layer, kind).shape
        weight, bias = repair.weights.get((layer, kind)), repair.biases.get((layer, kind))
        fits = (weight is None or weight.shape == shape) and (
            bias is None or bias.shape == shape[:1]
        )
    if not fits:
        raise PruningError(
            f"the repair's {kind} of layer {layer} are of another model; take the repair of the "
            "run that pruned this one"
        )
