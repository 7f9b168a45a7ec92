"""Chooses what rewards measure: which loss, of a mask as it is or after a bias repair.

Cross-entropy asks what the text says next, the KL divergence what the dense model says next. The
second needs one pass of the dense model a batch, and nothing of the text but where it is read.

A projection that loses the inputs x_P loses W_P x_P from its output. A bias repair adds the mean of
this, W_P mu_P, as a bias. The loss is the same if pruned inputs are not zero but their means mu. So
nothing is solved and no layer runs twice, and every mask of a training run can be evaluated with
its repair.
"""

from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.envs.judge import Judge
from pgprune.errors import PruningError, check_choice
from pgprune.masking.layer_mask import Fill
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import GRANULARITIES
from pgprune.metrics.flap import dense_moments

REWARDS = ("plain", "repaired")
LOSSES = ("cross-entropy", "kl")

TOP = 512
"""Tokens that the KL divergence tells apart, the most likely ones of the dense model."""

_WINDOWS = 128  # of calibration text for the means


def check_reward(reward: str, loss: str, granularity: str) -> None:
    """Makes sure that a reward fits masks over units of a granularity.

    Raises:
        PruningError: an unknown reward or loss, or units that a bias repair leaves as they are.
    """
    check_choice("reward", reward, REWARDS)
    check_choice("loss", loss, LOSSES)
    if reward == "repaired" and {"layer", "experts"} & set(GRANULARITIES.get(granularity, ())):
        raise PruningError(
            "reward repaired is about biases that make up for what is pruned, but a pruned layer "
            "or expert has none; choose reward plain or a granularity other than "
            f"{granularity}"
        )


def reward_judge(problem: Problem, reward: str, loss: str, precision: str = "highest") -> Judge:
    """Makes what computes the losses of rewards.

    Args:
        problem: as ``reward_fill`` takes it.
        reward: ``plain`` or ``repaired``.
        loss: ``cross-entropy`` or ``kl``.
        precision: of products of float32 matrices, one of ``PRECISIONS``.

    Raises:
        PruningError: as ``reward_fill``.
    """
    top = TOP if loss == "kl" else None
    return Judge(problem.lm, reward_fill(problem, reward), top, precision)


def reward_fill(problem: Problem, reward: str) -> Fill | None:
    """Returns the values of pruned inputs in the passes for rewards; None for zero.

    Args:
        problem: the frozen model and its calibration text, whose first 128 windows give the means
            of the inputs (all windows of a smaller finite set).
        reward: ``plain`` or ``repaired``.

    Raises:
        PruningError: too little calibration text, or activations that overflow.
    """
    if reward == "plain":
        return None
    return mean_fill(problem.lm, problem.stream.head(_WINDOWS))


def mean_fill(lm: MaskedLM, windows: Tensor) -> Fill:
    """Measures the mean inputs of the output and down projections of the dense model.

    ``MaskedLM.losses`` with these means is FLAP's bias compensation for pruned kv groups and
    channels: the bias of the projection grows by W_P mu_P. With granularity ``blocks``, a pruned
    block is the constant W mu + b, the mean output of its projection; no export holds that
    constant. Whole layers are not filled.

    Args:
        lm: the frozen model, which counts the tokens of the pass.
        windows: calibration token ids, (N, T).

    Returns:
        Means by layer and kind, (inputs,) each, in the number format and on the device of their
        projection.

    Raises:
        PruningError: means that are not finite.
    """
    fill = {}
    for (layer, kind), moments in dense_moments(lm, windows).items():
        # in the number format of the projection, which reads it in place of an input
        fill[layer, kind] = mean = moments.mean.to(lm.projection(layer, kind))
        if not bool(mean.isfinite().all()):
            # A mean in half precision overflows where the activations themselves just do not.
            raise PruningError(
                f"the inputs of the {kind} of layer {layer} overflow or are not numbers, so they "
                "have no mean; choose dtype float32 or bfloat16"
            )
    return fill
