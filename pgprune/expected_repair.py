"""A least-squares repair for masks that are still being drawn: the best one on average over them.

A repair belongs to one mask, and solving for each mask that an agent tries would cost far more than
trying it. But the masks m of a Bernoulli policy have known moments, so the weights V that are best
on average over the policy are a closed form too. For a projection with dense inputs x and weights
W, whose inputs i and j belong to units that are kept with probabilities s_i and s_j,

    E |V (m * x) - W x|^2

is smallest at V = C H^-1 with C_i = (W G)_i s_i and H_ij = G_ij E[m_i m_j], where G = E x x^T and
E[m_i m_j] is s_i s_j between two units and s_i within one. As s approaches zeros and ones, V
becomes the least-squares repair of the one mask that is left. It is ours; the paper has no repair.
"""

import torch
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.masked_lm import MaskedLM
from pgprune.projection import KINDS
from pgprune.repair import DAMPING, Repair


class ExpectedRepair:
    """Repairs for policies over the masks of one model.

    The second moments of the dense inputs of every output and down projection stay in memory, in
    the model's number format but at least float32: (inputs, inputs) each.

    Args:
        lm: the frozen model; two passes over the text count in its tokens.
        windows: calibration token ids, (N, T).
        damping: relative to the mean square of an input; it holds weights at their dense values.

    Raises:
        PruningError: units other than heads and channels, or activations that overflow.
    """

    @torch.no_grad()
    def __init__(self, lm: MaskedLM, windows: Tensor, damping: float = DAMPING) -> None:
        check_units(lm.units.granularity)
        self._lm = lm
        self._damping = damping
        self._groups = {(group.layer, group.kind): group for group in lm.units.groups}
        self._grams: dict[tuple[int, str], Tensor] = {}
        for seen in lm.observe(lm.units.ones(), windows):
            for inputs in seen.inputs:
                for kind, x in zip(KINDS, inputs, strict=True):
                    if (seen.layer, kind) in self._groups:
                        self._add((seen.layer, kind), x.flatten(0, -2))
        for (layer, kind), gram in self._grams.items():
            if not bool(gram.isfinite().all()):
                raise PruningError(
                    f"the inputs of the {kind} of layer {layer} overflow or are not numbers; "
                    "choose dtype float32 or bfloat16"
                )

    def _add(self, key: tuple[int, str], x: Tensor) -> None:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        gram = x.T @ x  # (inputs, inputs)
        self._grams[key] = self._grams[key].add_(gram) if key in self._grams else gram

    @torch.no_grad()
    def at(self, probabilities: Tensor) -> Repair:
        """The best weights on average over the masks of a policy.

        Args:
            probabilities: of keeping each unit, (n,).

        Returns:
            Weights for the inputs that a mask keeps, on the model's device. Where a projection
            keeps everything for sure, it is left as it is.
        """
        repair = Repair()
        for key, gram in self._grams.items():
            group = self._groups[key]
            keep = probabilities[group.start : group.stop]
            if not bool((keep == 1).all()):
                weight = self._lm.projection(*key)
                repair.weights[key] = self._solve(gram, weight, keep).to(weight)
        return repair

    def _solve(self, gram: Tensor, weight: Tensor, keep: Tensor) -> Tensor:
        """V (outputs, inputs) for units that are kept with probabilities (units,)."""
        dtype = torch.float64 if gram.device.type != "mps" else torch.float32
        width = len(gram) // len(keep)
        s = keep.to(gram.device, dtype).repeat_interleave(width)  # (inputs,)
        unit = torch.arange(len(keep), device=s.device).repeat_interleave(width)
        both = torch.where(unit[:, None] == unit, s, s[:, None] * s)  # (inputs, inputs)
        ridge = self._damping * float(gram.diagonal().mean()) or 1.0
        left = (gram * both).diagonal_scatter(gram.diagonal() * s + ridge)
        right = (weight.to(gram) @ gram) * s + ridge * weight.to(gram)  # (outputs, inputs)
        return torch.linalg.solve(left, right.T.to(dtype)).T


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
