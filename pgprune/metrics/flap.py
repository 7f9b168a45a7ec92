"""FLAP: scores units by the fluctuation of the inputs of output and down projections."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.errors import PruningError
from pgprune.masking.layer_mask import by_unit
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import Group
from pgprune.metrics.base import FINE, metric
from pgprune.metrics.importance import Importance

FLUCTUATIONS = ("variance", "released")


@dataclass
class Moments:
    """Running moments of the inputs of one projection, window by window.

    Attributes:
        windows: number seen so far.
        tokens: number seen so far.
        total: sum of the inputs, (inputs,) float64.
        squares: sum of their squares, (inputs,) float64.
        drift: the sum that the released code calls fluctuation, (inputs,) float64.
    """

    windows: int = 0
    tokens: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    drift: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, inputs: Tensor) -> None:
        """Adds one window: (T, inputs)."""
        inputs = inputs.double()
        total, squares = inputs.sum(0).cpu(), inputs.square().sum(0).cpu()
        self.windows += 1
        self.tokens += len(inputs)
        self.total = self.total + total
        self.squares = self.squares + squares
        # sum over tokens of (x - mu_k)^2, with the mean mu_k of all windows up to this one
        around = squares - 2 * self.mean * total + len(inputs) * self.mean.square()
        self.drift = self.drift + (1 - 1 / self.windows) * around

    @property
    def mean(self) -> Tensor:
        """Mean of each input, (inputs,) float64."""
        return self.total / self.tokens

    def fluctuation(self, how: str) -> Tensor:
        """Computes how much each input varies, (inputs,) float64.

        ``variance`` is the sample variance over tokens, as the paper says. ``released`` is the
        formula of its code: 1/(K-1) sum over windows k of (k-1)/k sum over tokens of (x - mu_k)^2,
        with the mean mu_k of the first k windows.
        """
        if how == "released":
            return self.drift / (self.windows - 1)
        around = self.squares - self.tokens * self.mean.square()  # sum of (x - mean)^2
        return around.clamp(min=0) / (self.tokens - 1)  # rounding may go below 0


def dense_moments(lm: MaskedLM, windows: Tensor) -> dict[tuple[int, str], Moments]:
    """Measures the inputs of the output and down projections of the dense model.

    Args:
        lm: the frozen model.
        windows: calibration token ids, (N, T).

    Returns:
        By layer and kind, ``heads`` for the output and ``channels`` for the down projection.
    """
    moments: dict[tuple[int, str], Moments] = {}
    for observation in lm.observe(lm.units.ones(), windows):
        heads = moments[observation.layer, "heads"] = Moments()
        channels = moments[observation.layer, "channels"] = Moments()
        for attention_inputs, mlp_inputs in observation.inputs:
            for window in range(len(attention_inputs)):
                heads.add(attention_inputs[window])
                channels.add(mlp_inputs[window])
    return moments


@metric("flap", FINE)
def flap(lm: MaskedLM, windows: Tensor, budget: Budget, seed: int) -> Importance:
    """Scores units by FLAP's metric (WIFV), standardised by layer for its ranking (AL-AM).

    The score of input j is its fluctuation times the square sum of its column of weights, squared
    once more for the output projection, and standardised over the inputs of its layer. A kv group
    is the mean over its query heads' dimensions, a value dimension over its
    query heads, a channel block over its channels. Scores then
    compare across layers and kinds. The budget of FLAP is ``parameters``: a head there counts 512/3
    channels, which is (2g+2)d/3 for g query heads of d dimensions in a kv group without biases.

    Source: An et al. 2024 (CASIA-IVA-Lab/FLAP). Here any head size and grouped kv heads; all
    statistics are of the dense model, as there. Its bias compensation is in the method ``flap``.

    Raises:
        PruningError: there is only one window.
    """
    check_windows(windows)
    return flap_importance(lm, dense_moments(lm, windows))


def flap_importance(
    lm: MaskedLM, moments: dict[tuple[int, str], Moments], fluctuation: str = "variance"
) -> Importance:
    """Computes FLAP's importance from the result of ``dense_moments``."""
    scores = torch.zeros(lm.units.n, dtype=torch.float64)
    for group in lm.units.groups:
        varied = moments[group.layer, group.projection].fluctuation(fluctuation)
        scores[group.start : group.stop] = _group_scores(lm, group, varied)
    return Importance(scores)


def check_windows(windows: Tensor) -> None:
    """Makes sure that inputs can vary between windows.

    Raises:
        PruningError: only one window.
    """
    if len(windows) < 2:
        raise PruningError(
            "flap measures how inputs vary, so it needs at least 2 calibration windows; raise "
            "the number of samples"
        )


def _group_scores(lm: MaskedLM, group: Group, fluctuation: Tensor) -> Tensor:
    """Scores the units of a group from the fluctuation of all its inputs, (inputs,)."""
    weight = lm.projection(group.layer, group.projection)
    columns = torch.stack([part.double().square().sum(0) for part in weight.split(512)]).sum(0)
    score = fluctuation * columns.cpu()  # S_j = Var(x_j) |W_:j|^2, (inputs,)
    if group.projection == "heads":
        score = score.square()  # as the released code does for attention only
    deviation = score.std()
    standard = (score - score.mean()) / deviation.where(deviation > 0, 1)
    standard = by_unit(standard, lm.units.input_order(group))
    return standard.view(group.stop - group.start, -1).mean(1)
