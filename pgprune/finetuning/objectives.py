"""What a model is trained for: a loss of a batch, whose gradient is added up chunk by chunk.

The gradients of the head end at the last hidden states, so that no more than one chunk of logits is
ever kept. Then one pass goes back through the layers, with what all chunks have added up.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune.inspection.base_model import base_model
from pgprune.losses.tokens import chunk_tokens, token_losses
from pgprune.models.families import decoder_layers
from pgprune.models.family import Family

Autocast = Callable[[], AbstractContextManager[Any]]
"""Gives the number format of the matrix products in its body."""


class Objective(Protocol):
    """A loss of a batch of windows."""

    def backward(self, model: PreTrainedModel, ids: Tensor, trained: Tensor, count: int) -> float:
        """Adds the gradient of some windows' share of a batch's mean loss.

        Args:
            model: that is trained.
            ids: some windows of the batch, (b, T).
            trained: the tokens whose prediction is learned, (b, T) bool.
            count: such tokens of the whole batch.

        Returns:
            Their share of the mean loss, in nats.
        """


class CrossEntropy:
    """The cross-entropy with the text.

    Args:
        autocast: number format of the products.
    """

    def __init__(self, autocast: Autocast) -> None:
        self._autocast = autocast

    def backward(self, model: PreTrainedModel, ids: Tensor, trained: Tensor, count: int) -> float:
        """Adds a gradient, as ``Objective``."""
        wanted = predicting(trained)
        with self._autocast():
            hidden = last_states(model, ids)
        states, targets = hidden[:, :-1][wanted], ids[:, 1:][wanted]  # (N, D), (N,)

        def loss(part: Tensor, target: Tensor) -> Tensor:
            with self._autocast():
                return token_losses(model, part, target).sum() / count

        return backward_by_chunks(model, states, loss, targets)


def predicting(trained: Tensor) -> Tensor:
    """Tells the positions before the last that predict a trained token: (b, T) -> (b, T-1)."""
    return trained[:, 1:]  # position t predicts token t + 1, so the first is never a target


def last_states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Computes the states after the final norm of windows: (b, T) -> (b, T, D)."""
    hidden: Tensor = base_model(model)(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


def backward_by_chunks(
    model: PreTrainedModel,
    states: Tensor,
    loss: Callable[..., Tensor],
    *beside: Tensor,
    more: Tensor | None = None,
) -> float:
    """Adds the gradients of a sum of losses over chunks of states, and of one more loss.

    Args:
        model: with the head that the losses use.
        states: last hidden states, (N, D).
        loss: takes some of the states (c, D) and the same rows of ``beside``.
        *beside: what belongs to the states, (N, ...) each.
        more: a loss of the same pass that does not use the head.

    Returns:
        The sum, with ``more``.
    """
    leaf, total = states.detach().requires_grad_(), 0.0
    chunk = chunk_tokens(model.get_output_embeddings().weight.shape[0])
    for rows in zip(*(tensor.split(chunk) for tensor in (leaf, *beside)), strict=True):
        part = loss(*rows)
        part.backward()
        total += float(part.detach())
    if more is None:
        states.backward(leaf.grad)
        return total
    torch.autograd.backward([states, more], [leaf.grad, None])
    return total + float(more.detach())


def autocast(precision: str, device: torch.device) -> Autocast:
    """Returns the number format of ``--precision``: bfloat16, or that of the weights."""
    if precision == "full" or (precision == "auto" and device.type != "cuda"):
        return nullcontext
    return partial(torch.autocast, device.type, torch.bfloat16)


@contextmanager
def states_after(model: nn.Module, family: Family, layers: list[int]) -> Iterator[list[Tensor]]:
    """Yields a list that gets the states after some layers (b, T, D) when the model runs."""
    states: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    modules = decoder_layers(model, family)
    hooks = [modules[index].register_forward_hook(keep) for index in layers]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
