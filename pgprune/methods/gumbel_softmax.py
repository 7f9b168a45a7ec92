"""Gumbel-softmax: learns the paper's policy by back-propagation in place of REINFORCE."""

import torch
from torch import Tensor, nn

from pgprune.budget.problem import Problem
from pgprune.masking.soft_losses import soft_losses
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.methods.common.learning import steps_for, stopwatch
from pgprune.metrics import METRICS, Importance
from pgprune.metrics.base import DEPTH, FINE
from pgprune.metrics.initialization import initial_probabilities, metric_name
from pgprune.utils.progress import track

_LEARNING_RATE = 0.05
_HOT, _COLD = 2.0, 0.4  # temperatures at the first and the last step
_INTERIOR = 1e-4  # distance of probabilities from 0 and 1, where logits are infinite


@method("gumbel-softmax", FINE + DEPTH, random=True, backward=True, learns=True)
def gumbel_softmax(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Learns keep probabilities by back-propagation through sampled masks.

    A unit is kept if ``logit(s) + logit(u) > 0`` for a uniform u: the agent's Bernoulli policy.
    The backward pass takes the mask for ``sigmoid((logit(s) + logit(u)) / temperature)``
    (straight-through), with a temperature that falls from 2 to 0.4. Adam moves the logits, and
    after each step s is projected onto the budget as the agent does. Start (an
    importance metric), calibration batches, budget, cosine schedule and rounding are the agent's
    too, so only the gradient differs: biased with little variance here, unbiased and noisy there.

    One mask is drawn on each batch. A batch counts twice in ``tokens``: with frozen weights its
    backward pass costs about another forward pass, and holds all activations of the batch. So
    2,000 timesteps read 1,000 batches, as do 2,000 of an agent with two masks a step.

    Source: Jang et al. 2017 and Maddison et al. 2017, with the projection of arXiv 2406.10576,
    whose Remarks 2 and 3 argue against this method.

    Options: ``learning_timesteps`` and ``learning_step``.

    Returns:
        The rounded mask, its probabilities, and the cost of learning.
    """
    lm, budget = problem.lm, problem.budget
    metric = METRICS[metric_name("auto", problem.units.granularity)]
    initial = initial_probabilities(metric(lm, windows, budget, seed), budget)
    logits = nn.Parameter(_logits(initial.to(lm.device)))  # (n,) float64
    generator = torch.Generator(lm.device).manual_seed(seed)
    optimizer = torch.optim.Adam([logits], lr=config.learning_step or _LEARNING_RATE)
    steps, notes = steps_for(problem, config.learning_timesteps), stopwatch(problem)
    problem.stream.seek(0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in track(range(steps), "learning", unit="steps"):
        temperature = _HOT * (_COLD / _HOT) ** (step / steps)
        mask = straight_through(logits, temperature, generator)
        loss = soft_losses(lm, mask, problem.stream.next()).mean()
        if not bool(loss.isfinite()):
            continue  # a batch without a gradient; it counts in the cost
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        with torch.no_grad():
            logits.copy_(_logits(budget.project(logits.sigmoid())))
    scores = logits.detach().sigmoid().cpu()
    return Pruned(budget.round(scores), Importance(scores), notes=notes(steps))


def straight_through(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draws a mask of zeros and ones whose gradient is that of the relaxed mask.

    Args:
        logits: of the keep probabilities, (n,).
        temperature: of the relaxation, above 0; the mask itself does not depend on it.
        generator: of the logits' device.

    Returns:
        (n,) of the logits' type.
    """
    uniform = torch.rand(
        logits.shape, generator=generator, dtype=logits.dtype, device=logits.device
    )
    noisy = logits + torch.logit(uniform, eps=1e-12)
    soft = torch.sigmoid(noisy / temperature)
    # Straight-through: the value is the hard mask, the gradient is that of the soft one.
    return (noisy > 0).to(soft) + (soft - soft.detach())


def _logits(probabilities: Tensor) -> Tensor:
    return torch.logit(probabilities, eps=_INTERIOR)
