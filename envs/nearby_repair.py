"""A least-squares repair for every mask near one that was looked at.

A repair runs through the model layer by layer, as each projection gets what the ones before it
give. For each mask that an agent tries, that would cost far more than trying it. But the second
moments that a projection's inputs have in the repaired model of one mask are nearly those in the
models of similar masks, and given the moments, the best weights for what a mask keeps are a small
linear system. It is ours; the paper has no repair.

Each projection should give what it gives with dense weights. In the shipped repair it makes up for
what earlier layers get wrong, too; weights that do so for one mask punish every other mask, and an
agent that is judged with them stays where it is.
"""

import torch
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.repair.fit import DAMPING
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.projection import Projection
from pgprune.repair.refit import Solution, best_weights, refit_layers
from pgprune.repair.repair import Repair


class NearbyRepair:
    """Repairs for masks over one model, from the second moments in the repaired model of a mask.

    The moments of all output and down projections stay in memory, (inputs, inputs) float64 each.

    Args:
        lm: the frozen model; each ``follow`` counts in its tokens as a repair does.
        windows: calibration token ids, (N, T).
        damping: as of the repair that the masks will get.

    Raises:
        PruningError: units other than heads and channels.
    """

    def __init__(self, lm: MaskedLM, windows: Tensor, damping: float = DAMPING) -> None:
        check_units(lm.units.granularity)
        self._lm = lm
        self._windows = windows
        self._damping = damping
        self._problems: dict[tuple[int, str], LeastSquares] = {}

    @torch.no_grad()
    def follow(self, mask: Tensor) -> None:
        """Takes the moments in the model of a mask, (n,), whose projections are refitted so.

        A projection that loses all its inputs has none; masks that keep some get dense weights.

        Raises:
            PruningError: activations that overflow, or singular second moments.
        """
        problems: dict[tuple[int, str], LeastSquares] = {}

        def solve(projection: Projection) -> Solution:
            if projection.group is None:
                return {}
            problem = projection.least_squares(self._damping)
            problems[projection.seen.layer, projection.kind] = problem
            return best_weights(projection, problem)

        refit_layers(self._lm, mask, self._windows, solve, "projection")
        self._problems = problems

    @torch.no_grad()
    def __call__(self, mask: Tensor) -> Repair:
        """The weights that are best for a mask (n,) under the moments that are followed."""
        repair = Repair()
        for group in self._lm.units.groups:
            kept = mask[group.start : group.stop].bool()
            problem = self._problems.get((group.layer, group.kind))
            if problem is None or kept.all():
                continue  # dense weights are the best
            weight, dense = problem.refit(kept), self._lm.projection(group.layer, group.kind)
            repair.weights[group.layer, group.kind] = weight.to(dense)
            if (bias := problem.bias(weight)) is not None:
                repair.biases[group.layer, group.kind] = bias.to(dense)
        return repair


def check_units(granularity: str) -> None:
    """Makes sure that units are the inputs of projections.

    Raises:
        PruningError: they are whole blocks or layers.
    """
    if granularity in ("blocks", "layers"):
        raise PruningError(
            f"a least-squares reward is about heads and channels, not granularity {granularity}; "
            "choose reward plain, or granularity heads+channels"
        )
