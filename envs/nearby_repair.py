"""Repairs masks by least squares from the moments measured in the model of a similar mask.

A shipped repair runs through the model layer by layer, since the inputs of a projection depend on
the layers before it. For each mask that an agent tries, this would cost far more than its loss. But
the second moments of a projection's inputs change little between the models of similar masks.
Given the moments H of one mask, the best weights of another with the kept inputs K are a small
linear system, V_K = B_K (H_KK + damping)^-1. This is ours; the paper has no repair.

Each projection should give what it gives with dense weights. The shipped repair also compensates
for errors of earlier layers. Weights that do so for one mask penalise every other mask, so an agent
whose rewards use them would stay at the first mask.
"""

import torch
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import GRANULARITIES
from pgprune.repair.fit import DAMPING
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.projection import Projection
from pgprune.repair.refit import best_weights, refit_layers
from pgprune.repair.repair import Repair
from pgprune.repair.solution import Solution
from pgprune.utils.progress import phase


class NearbyRepair:
    """Gives masks the weights that are best under the moments in the repaired model of one mask.

    The moments of all output and down projections stay in memory, (inputs, inputs) float64 each.

    Args:
        lm: the frozen model; each ``follow`` counts tokens as a repair does.
        windows: calibration token ids, (N, T).
        damping: as in the shipped repair.

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
        """Measures the moments in the model of a mask, (n,), repaired in the same way.

        A projection that loses all its inputs has no moments; masks that keep some of them get
        dense weights.

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

        with phase("moments of rewards"):
            refit_layers(self._lm, mask, self._windows, solve, "projection")
        self._problems = problems  # only now, so that an error leaves the last ones whole

    @torch.no_grad()
    def __call__(self, mask: Tensor) -> Repair:
        """Solves the weights of a mask (n,) under the moments of the followed mask."""
        repair = Repair()
        for group in self._lm.units.groups:
            kept = mask[group.start : group.stop].bool()  # (units of the group,)
            key = (group.layer, group.projection)
            problem = self._problems.get(key)
            if problem is None or kept.all():
                continue  # dense weights are the best for all inputs
            dense = self._lm.projection(*key)
            weight = problem.refit(kept)  # (outputs, inputs), zero for pruned inputs
            repair.weights[key] = problem.in_place(weight).to(dense)
            if (bias := problem.bias(weight)) is not None:
                repair.biases[key] = bias.to(dense)
        return repair


def check_units(granularity: str) -> None:
    """Makes sure that units are inputs of projections.

    Raises:
        PruningError: they are whole blocks, layers or experts.
    """
    if {"attention", "layer", "experts"} & set(GRANULARITIES[granularity]):
        raise PruningError(
            f"a least-squares reward is about heads and channels, not granularity {granularity}; "
            "choose reward plain, or granularity heads+channels"
        )
