"""Divergence of next-token predictions from those of the dense model, of which a few are kept.

The Kullback-Leibler divergence KL(p || q) over a vocabulary needs all of p. Here the k most likely
tokens of the dense model are kept, and all others count as one. So both distributions have k + 1
entries that sum to one. Their divergence is at most that over the vocabulary (the log-sum
inequality, Cover & Thomas 2006, Theorem 2.7.1), and equal to it with k = vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgprune.errors import PruningError
from pgprune.losses.tokens import LogitsMemory, each_chunk


class Predictions(NamedTuple):
    """The most likely next tokens at N places.

    Attributes:
        tokens: the most likely one first, (N, k) int64.
        log_probabilities: of these tokens, and of all others together, (N, k + 1).
    """

    tokens: Tensor
    log_probabilities: Tensor


def predictions(
    model: nn.Module,
    hidden: Tensor,
    top: int,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    memory: LogitsMemory | None = None,
) -> Predictions:
    """Keeps what a model predicts, as much of it as ``divergences`` needs.

    Args:
        model: a causal LM, for its head.
        hidden: last hidden states after the final norm, (N, D).
        top: k, tokens to tell apart; of a smaller vocabulary all.
        temperature: by which logits are divided.
        chunk: as in ``token_losses``, and so is ``memory``.
        memory: for logits.

    Raises:
        PruningError: ``top`` is below 1.
    """
    if top < 1:
        raise PruningError(f"top {top} keeps no token of the dense predictions; choose 1 or more")

    def keep(log_probabilities: Tensor) -> Predictions:
        log_probabilities = tempered(log_probabilities, temperature)
        most = min(top, log_probabilities.shape[1])
        tokens = log_probabilities.topk(most, dim=1).indices  # (c, k)
        return Predictions(tokens, _told_apart(log_probabilities, tokens))

    kept = each_chunk(model, hidden, keep, chunk=chunk, memory=memory)
    return Predictions(*map(torch.cat, zip(*kept, strict=True)))


def divergences(
    model: nn.Module,
    hidden: Tensor,
    dense: Predictions,
    *,
    chunk: int | None = None,
    memory: LogitsMemory | None = None,
) -> Tensor:
    """Computes KL(dense || model) of next-token predictions, in at least float32.

    Args:
        model: a causal LM, for its head.
        hidden: last hidden states after the final norm, (N, D).
        dense: what the dense model predicts at the same N places.
        chunk: as in ``token_losses``, and so is ``memory``.
        memory: for logits.

    Returns:
        (N,) in nats.

    Raises:
        PruningError: the dense predictions are of another number of places.
    """
    if len(dense.tokens) != len(hidden):
        raise PruningError(
            f"dense predictions of {len(dense.tokens)} tokens do not compare with states of "
            f"{len(hidden)}; take those of the same batch"
        )
    return torch.cat(
        each_chunk(model, hidden, divergences_from, *dense, chunk=chunk, memory=memory)
    )


def tempered(log_probabilities: Tensor, temperature: float) -> Tensor:
    """Returns the log-probabilities (c, vocabulary) of logits that are divided by a temperature."""
    if temperature == 1:
        return log_probabilities
    return (log_probabilities / temperature).log_softmax(1)  # a shift of all logits cancels


def divergences_from(log_probabilities: Tensor, tokens: Tensor, dense: Tensor) -> Tensor:
    """Computes KL(dense || model) of log-probabilities, which may be overwritten.

    Args:
        log_probabilities: of the model, (c, vocabulary).
        tokens: as in ``Predictions``, (c, k).
        dense: their log-probabilities and that of all others, (c, k + 1).

    Returns:
        (c,) in nats.
    """
    device = log_probabilities.device
    found = _told_apart(log_probabilities, tokens.to(device))  # (c, k + 1)
    return F.kl_div(found, dense.to(found), reduction="none", log_target=True).sum(1)


def _told_apart(log_probabilities: Tensor, tokens: Tensor) -> Tensor:
    """Returns log-probabilities of tokens (c, k) and of all others together, (c, k + 1).

    Overwrites the log-probabilities (c, vocabulary) unless they have gradients, so that it needs no
    memory of their size. The others are summed by themselves: one minus the tokens' sum would be
    mostly rounding error.
    """
    own = log_probabilities.gather(1, tokens)
    needed = log_probabilities.requires_grad
    rest = log_probabilities.clone() if needed else log_probabilities
    others = rest.scatter_(1, tokens, -torch.inf).exp_().sum(1, keepdim=True)
    smallest = torch.finfo(others.dtype).tiny  # also of no others: a logarithm must be finite
    return torch.cat([own, others.clamp(min=smallest).log()], dim=1)
