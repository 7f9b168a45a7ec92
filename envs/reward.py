"""What masks are rewarded for: their loss as they are, or as they will be after a bias repair.

A projection that loses inputs x_P loses W_P x_P from its output. A bias repair gives back what that
was on average, W_P mu_P, as a bias. The same loss comes out if pruned inputs are not zero but their
means mu: nothing is solved and no layer runs twice, so every mask of a training run can be judged
as it will be repaired.
"""

from torch import Tensor

from pgprune.errors import PruningError
from pgprune.masking.layer_mask import Fill
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.problem import Problem
from pgprune.metrics.flap import dense_moments

REWARDS = ("plain", "repaired")

_WINDOWS = 128  # of calibration text for the means


def check_reward(reward: str, granularity: str) -> None:
    """Makes sure that masks over units of a granularity can be rewarded so.

    Raises:
        PruningError: an unknown reward, or units that a bias repair leaves as they are.
    """
    if reward not in REWARDS:
        raise PruningError(f"reward {reward!r} is unknown; choose one of {', '.join(REWARDS)}")
    if reward == "repaired" and granularity == "layers":
        raise PruningError(
            "reward repaired is about biases that make up for what is pruned, but a pruned layer "
            "has none; choose reward plain or a granularity other than layers"
        )


def reward_fill(problem: Problem, reward: str) -> Fill | None:
    """What pruned inputs are where rewards are computed.

    Args:
        problem: the frozen model and its calibration text, whose first 128 windows give the means
            of the inputs (all windows of a smaller finite set).
        reward: ``plain`` or ``repaired``.

    Returns:
        The means; None for zero.

    Raises:
        PruningError: too little calibration text, or activations that overflow.
    """
    if reward == "plain":
        return None
    return mean_fill(problem.lm, problem.stream.head(_WINDOWS))


def mean_fill(lm: MaskedLM, windows: Tensor) -> Fill:
    """The mean inputs of the output and down projections of the dense model.

    ``MaskedLM.losses`` with it gives pruned kv groups and channels FLAP's bias compensation: the
    projection's bias grows by W_P mu_P. With granularity ``blocks``, a pruned block is the constant
    W mu + b, the mean of what its projection gives; no export holds that constant. Whole layers
    are not filled.

    Args:
        lm: the frozen model; its pass over the text counts in its tokens.
        windows: calibration token ids, (N, T).

    Returns:
        Means by layer and kind, (inputs,) each, in the number format and on the device of their
        projection.

    Raises:
        PruningError: means that are not finite.
    """
    fill = {}
    for (layer, kind), moments in dense_moments(lm, windows).items():
        fill[layer, kind] = mean = moments.mean.to(lm.projection(layer, kind))
        if not bool(mean.isfinite().all()):
            raise PruningError(
                f"the inputs of the {kind} of layer {layer} overflow or are not numbers, so they "
                "have no mean; choose dtype float32 or bfloat16"
            )
    return fill
