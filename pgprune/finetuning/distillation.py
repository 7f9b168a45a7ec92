"""Distillation: the dense model teaches the pruned one what it predicts (Hinton et al. 2015).

The loss of a token is the Kullback-Leibler divergence of the teacher's predictions to the
student's, both at a temperature T and times T^2, by which gradients are as large as at T = 1
(arXiv 1503.02531, section 2). Of the teacher's predictions the k most likely tokens are told apart
and all others count as one (``pgprune.losses.divergence``). Teacher and student run on the same
chunk of tokens one after the other, so that of neither more than one chunk of logits exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from pgprune.finetuning.objectives import (
    Autocast,
    backward_by_chunks,
    last_states,
    predicting,
    states_after,
)
from pgprune.finetuning.parts import listed_family
from pgprune.losses.divergence import divergences_from, predictions, tempered
from pgprune.losses.tokens import LogitsMemory, each_chunk
from pgprune.utils.options import Config, option


@dataclass(frozen=True)
class DistillationConfig(Config):
    """Distillation: what the dense model teaches."""

    distill: bool = option(False, "learn the dense model's predictions, and not the text")
    teacher: str | None = option(
        None,
        "the dense model, for --distill and --local",
        unset="the run's own",
        metavar="MODEL",
    )
    temperature: float = option(1.0, "by which logits are divided", above=0, maximum=100)
    top_k: int = option(
        128, "tokens of the teacher's predictions that are told apart", minimum=1, maximum=10**6
    )
    cross_entropy_weight: float = option(
        0.0, "share of the text's cross-entropy in the loss", minimum=0, below=1
    )
    hidden_loss_weight: float = option(
        16.0, "weight of the error of the states after each kept layer", minimum=0, maximum=1000
    )


class Distillation:
    """The divergence from a teacher, as an ``Objective``.

    Args:
        teacher: the dense model, on the student's device.
        config: of the loss.
        layers: index of the dense layer that each layer of the student was; for the hidden loss.
        autocast: number format of the products.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        config: DistillationConfig,
        layers: Sequence[int],
        autocast: Autocast,
    ) -> None:
        self._teacher, self._config, self._autocast = teacher, config, autocast
        self._layers = list(layers) if config.hidden_loss_weight else []
        self._memory = LogitsMemory()

    def backward(self, model: PreTrainedModel, ids: Tensor, trained: Tensor, count: int) -> float:
        """Adds a gradient, as ``Objective``."""
        config, wanted = self._config, predicting(trained)
        own = list(range(len(self._layers)))
        with self._autocast():
            with torch.no_grad():
                taught, right = self._run(self._teacher, ids, self._layers)
            hidden, found = self._run(model, ids, own)
        more = None
        if self._layers:
            pairs = zip(found, right, strict=True)
            errors = [relative_errors(*pair)[:, :-1][wanted].sum() / count for pair in pairs]
            more = config.hidden_loss_weight * torch.stack(errors).mean()
        states, targets = hidden[:, :-1][wanted], ids[:, 1:][wanted]  # (N, D), (N,)

        def loss(part: Tensor, lesson: Tensor, target: Tensor) -> Tensor:
            with self._autocast():
                return self._losses(model, part, lesson, target).sum() / count

        dense = taught[:, :-1][wanted]  # (N, teacher's D)
        return backward_by_chunks(model, states, loss, dense, targets, more=more)

    def _run(
        self, model: PreTrainedModel, ids: Tensor, layers: list[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Computes the last states (b, T, D), and those after some layers."""
        with states_after(model, listed_family(model.config), layers) as states:
            return last_states(model, ids), states

    def _losses(
        self, model: PreTrainedModel, states: Tensor, dense: Tensor, targets: Tensor
    ) -> Tensor:
        """Computes the losses of a chunk of tokens, (c,), from both models' last states."""
        temperature, share = self._config.temperature, self._config.cross_entropy_weight
        with torch.no_grad():
            lesson = predictions(
                *(self._teacher, dense, self._config.top_k),
                temperature=temperature,
                memory=self._memory,
            )

        def of(found: Tensor, tokens: Tensor, right: Tensor, target: Tensor) -> Tensor:
            losses = divergences_from(tempered(found, temperature), tokens, right) * temperature**2
            if not share:
                return losses
            return (1 - share) * losses + share * F.nll_loss(found, target, reduction="none")

        return torch.cat(each_chunk(model, states, of, *lesson, targets))


def relative_errors(states: Tensor, right: Tensor) -> Tensor:
    """Computes squared errors of states over the squares of the right ones: (..., D) -> (...)."""
    wide = torch.promote_types(right.dtype, torch.float32)
    error, right = (states.to(wide) - right.to(wide)), right.to(wide)
    # A mean of ratios: a few tokens have states a thousand times as large as the others'.
    size = right.square().sum(-1).clamp(min=torch.finfo(wide).tiny)
    return error.square().sum(-1) / size
