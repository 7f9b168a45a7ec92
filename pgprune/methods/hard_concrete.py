"""Hard-concrete: learns masks by L0 regularisation under a Lagrangian."""

import math

import torch
from torch import Tensor, nn

from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem
from pgprune.masking.soft_losses import soft_losses
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.methods.common.learning import steps_for, stopwatch
from pgprune.metrics import Importance
from pgprune.metrics.base import DEPTH, FINE
from pgprune.utils.progress import track

_BETA, _GAMMA, _ZETA = 2 / 3, -0.1, 1.1  # temperature and stretch of Louizos et al.
_LEARNING_RATE = 0.15
_MULTIPLIER_RATE = 1.0  # of gradient ascent in the Lagrangian's a and b
_RAMP = 0.2  # share of the steps in which the target falls from everything to the budget's
_ALPHA = (math.log(0.01), math.log(100))  # the range of alpha


@method("hard-concrete", FINE + DEPTH, random=True, backward=True, learns=True)
def hard_concrete(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Learns masks whose expected number of kept units Lagrange multipliers hold to the budget.

    The mask of a unit is ``clip(sigmoid((logit(u) + alpha) / beta) (zeta - gamma) + gamma, 0, 1)``
    for a uniform u, with beta 2/3, gamma -0.1 and zeta 1.1, so that exact zeros and ones have
    positive probability. Each pool of the budget adds ``a (k - t) + b (k - t)^2`` to the loss,
    where k is the expected share of units with a mask above 0; the target t ramps from 1 to the
    budget's share over the first 20 % of the steps, alpha is trained by Adam and clamped to [ln
    0.01, ln 100], and a and b ascend with step size 1. Alpha starts at N(5, 0.01).

    These formulas and constants are theirs. Ours: the weights stay frozen. A pool is the budget's
    (each kind of unit by default, over all layers); theirs is each module, with a number fixed
    beforehand. The answer is the budget's rounding of alpha, a mask of zeros and ones; theirs keeps
    soft masks and folds them into weights that are trained further.

    One mask is drawn on each batch. A batch counts twice in ``tokens``: with frozen weights its
    backward pass costs about another forward pass, and holds all activations of the batch. So
    2,000 timesteps read 1,000 batches, as do 2,000 of an agent with two masks a step.

    Source: Louizos et al. 2018; Xia et al. 2024, Sheared LLaMA (princeton-nlp/LLM-Shearing).

    Options: ``learning_timesteps`` and ``learning_step``.

    Returns:
        The rounded mask, its scores, and the cost of learning; the notes' ``expected_kept`` is the
        expected kept share of each pool at the end.
    """
    lm, budget = problem.lm, problem.budget
    generator = torch.Generator(lm.device).manual_seed(seed)
    start = torch.empty(problem.units.n, dtype=torch.float64, device=lm.device)
    alpha = nn.Parameter(start.normal_(5, 0.01, generator=generator).clamp(*_ALPHA))  # (n,)
    optimizer = torch.optim.Adam([alpha], lr=config.learning_step or _LEARNING_RATE)
    multipliers = torch.zeros(2, len(budget.pools), dtype=torch.float64, device=lm.device)
    steps, notes = steps_for(problem, config.learning_timesteps), stopwatch(problem)
    problem.stream.seek(0)
    for step in track(range(steps), "learning", unit="steps"):
        mask = stretched(alpha, generator)
        loss = soft_losses(lm, mask, problem.stream.next()).mean()
        if not bool(loss.isfinite()):
            continue  # a batch without a gradient; it counts in the cost
        target = 1 - (1 - budget.target_share) * min(1, (step + 1) / (_RAMP * steps))
        excess = kept_shares(alpha, budget) - target  # (pools,)
        powers = torch.stack([excess, excess**2])  # (2, pools)
        optimizer.zero_grad()
        (loss + (multipliers * powers).sum()).backward()  # L + a (k - t) + b (k - t)^2
        optimizer.step()
        with torch.no_grad():
            alpha.clamp_(*_ALPHA)
            multipliers += _MULTIPLIER_RATE * powers  # the Lagrangian's gradient in a and b
    scores = alpha.detach().cpu()
    expected = {"expected_kept": kept_shares(scores, budget).tolist()}
    return Pruned(budget.round(scores), Importance(scores), notes=notes(steps) | expected)


def stretched(alpha: Tensor, generator: torch.Generator) -> Tensor:
    """Draws a mask from the hard-concrete distribution.

    Args:
        alpha: (n,), the logarithm of its location.
        generator: of alpha's device.

    Returns:
        (n,) in [0, 1], differentiable where it is not 0 or 1.
    """
    uniform = torch.rand(alpha.shape, generator=generator, dtype=alpha.dtype, device=alpha.device)
    concrete = torch.sigmoid((torch.logit(uniform, eps=1e-6) + alpha) / _BETA)
    return (concrete * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


def kept_shares(alpha: Tensor, budget: Budget) -> Tensor:
    """Computes the expected share of each pool's cost whose mask is above 0: (n,) -> (pools,).

    P(mask > 0) = sigmoid(alpha - beta ln(-gamma / zeta)), the complexity loss of Louizos et al.
    """
    kept = torch.sigmoid(alpha - _BETA * math.log(-_GAMMA / _ZETA))  # P(mask > 0), (n,)
    shares = []
    for pool in budget.pools:
        cost = pool.cost.to(alpha)
        shares.append(kept[pool.members.to(alpha.device)] @ cost / cost.sum())
    return torch.stack(shares)
