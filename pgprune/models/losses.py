"""Next-token losses that never hold the logits of more than a chunk of tokens."""

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from pgprune.errors import PruningError, first_line

LOGITS_BYTES = 64 * 2**20
"""Of one chunk of float32 logits; the loss needs about three such."""

_kept = threading.local()  # the memory of a chunk, so that not every chunk's is mapped anew


def token_losses(
    model: nn.Module, hidden: Tensor, targets: Tensor, compiled: bool = False
) -> Tensor:
    """Cross-entropy of tokens, computed in at least float32.

    Args:
        model: a causal LM, for its head.
        hidden: last hidden states after the final norm, (N, D).
        targets: the tokens that follow, (N,) int64.
        compiled: by one function that ``torch.compile`` makes of head and loss.

    Returns:
        (N,) in nats.

    Raises:
        PruningError: they cannot be compiled here.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    chunk = max(64, LOGITS_BYTES // (4 * head.weight.shape[0]))
    losses = _compiled_losses if compiled else _losses
    if not compiled and _works_in_place(head, hidden):
        losses, chunk = _losses_in_place, 2 * chunk  # there is nothing beside the logits
    parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([losses(head, part, wanted) for part, wanted in parts])


def release_logits() -> None:
    """Gives back the memory that this thread keeps for logits."""
    _kept.__dict__.clear()


@torch.no_grad()
def sequence_losses(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Mean next-token cross-entropy of each sequence: (B, T) int64 -> (B,) in nats."""
    embeddings: Any = model.get_input_embeddings()
    ids = input_ids.to(embeddings.weight.device)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, D)
    losses = token_losses(model, hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return losses.view(len(ids), -1).mean(dim=1)


def next_token_logits(
    model: PreTrainedModel, input_ids: Tensor, cache: Cache | None = None
) -> tuple[Tensor, Cache]:
    """Logits after the last token of each text, and the cache to go on from.

    What ``logits_to_keep=1`` gives, without its price: there the head gets a slice of all hidden
    states, for which torch copies the head's weights on a CPU, once for each text.

    Args:
        model: a causal LM.
        input_ids: (B, T) int64; with a cache, what follows the tokens in it.
        cache: keys and values of earlier tokens.

    Returns:
        Logits (B, vocabulary) and the cache.
    """
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    ids = input_ids.to(embeddings.weight.device)
    output = model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return head(output.last_hidden_state[:, -1].contiguous()), output.past_key_values


def model_perplexity(model: PreTrainedModel, windows: Tensor, batch_size: int = 8) -> float:
    """Perplexity of a model as it is: exp of the mean cross-entropy over all predicted tokens.

    The same number that ``evaluation.perplexity`` gives for a mask that keeps everything, for any
    causal LM, pruned ones included.

    Args:
        model: a causal LM.
        windows: token ids, (N, T) int64; each window is read on its own, so its first token is
            not predicted.
        batch_size: windows of one call.

    Returns:
        The perplexity, whose mean is taken in float64. It is NaN if any loss is, and inf where it
        overflows.
    """
    losses = [sequence_losses(model, batch).cpu() for batch in windows.split(batch_size)]
    return float(torch.cat(losses).double().mean().exp())


def _losses(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return _cross_entropy(head(hidden), targets)


def _works_in_place(head: nn.Module, hidden: Tensor) -> bool:
    """Whether a head is a plain projection on a CPU whose logits need no gradient and no cast."""
    if torch.is_grad_enabled() or type(head) is not nn.Linear:
        return False
    on_cpu = head.weight.is_cpu and hidden.is_cpu
    return on_cpu and head.weight.dtype in (torch.float32, torch.float64)


def _losses_in_place(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """As ``_losses`` up to rounding; logits become log-probabilities in memory that is kept.

    Memory of this size would else come from the system page by page, anew for every chunk.
    """
    logits = _memory(len(hidden), len(head.weight), head.weight.dtype)  # (N, vocabulary)
    if head.bias is None:
        torch.mm(hidden, head.weight.T, out=logits)
    else:
        torch.addmm(head.bias, hidden, head.weight.T, out=logits)
    torch.log_softmax(logits, 1, out=logits)
    return F.nll_loss(logits, targets.to(logits.device), reduction="none")


def _memory(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Memory of this thread, (rows, columns), whose content is of no use."""
    kept: Tensor | None = getattr(_kept, "memory", None)
    if kept is None or kept.dtype != dtype or kept.numel() < rows * columns:
        kept = _kept.memory = torch.empty(rows * columns, dtype=dtype)
    return kept[: rows * columns].view(rows, columns)


def _compiled_losses(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    from torch._dynamo.exc import TorchDynamoException

    try:
        return _head_and_loss()(hidden, head.weight, head.bias, targets)
    except TorchDynamoException as error:
        raise PruningError(
            f"head and loss cannot be compiled ({first_line(error)}); leave out --compile-head, or "
            "install what torch.compile needs, such as a C++ compiler"
        ) from error


@cache
def _head_and_loss() -> Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]:
    def losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        return _cross_entropy(F.linear(hidden, weight, bias), targets)

    return torch.compile(losses)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets.to(logits.device), reduction="none")
