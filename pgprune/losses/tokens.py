"""Next-token losses that never hold the logits of more than a chunk of tokens."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from pgprune.errors import PruningError, first_line
from pgprune.inspection.base_model import base_model

T = TypeVar("T")

LOGITS_BYTES = 64 * 2**20
"""Size of one chunk of float32 logits. The loss needs about three times as much."""


class LogitsMemory:
    """Memory for the logits of a chunk that is used again by the next chunk.

    Memory of this size would otherwise be mapped from the system page by page for every chunk,
    which takes longer than the loss. Not to be shared by threads.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Returns memory of undefined content, (rows, columns), which the next call reuses."""
        if self._memory.dtype != dtype or self._memory.numel() < rows * columns:
            self._memory = torch.empty(rows * columns, dtype=dtype)
        return self._memory[: rows * columns].view(rows, columns)


def chunk_tokens(vocabulary: int) -> int:
    """Returns how many tokens have float32 logits of ``LOGITS_BYTES``, at least 64."""
    return max(64, LOGITS_BYTES // (4 * vocabulary))


def token_losses(
    model: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    *,
    compiled: bool = False,
    chunk: int | None = None,
    memory: LogitsMemory | None = None,
) -> Tensor:
    """Computes the cross-entropy of tokens, in at least float32.

    Args:
        model: a causal LM, for its head.
        hidden: last hidden states after the final norm, (N, D).
        targets: the tokens that follow, (N,) int64.
        compiled: whether ``torch.compile`` fuses head and loss (experimental).
        chunk: tokens whose logits are in memory together; None for ``chunk_tokens``.
        memory: for logits; None for new memory.

    Returns:
        (N,) in nats.

    Raises:
        PruningError: head and loss cannot be compiled here.
    """
    if compiled:
        head = model.get_output_embeddings()  # type: ignore[operator]
        size = chunk or chunk_tokens(head.weight.shape[0])
        chunks = zip(hidden.split(size), targets.split(size), strict=True)
        finish = Finish.of(model)
        return torch.cat([_compiled_losses(head, finish, *each) for each in chunks])
    return torch.cat(each_chunk(model, hidden, _losses, targets, chunk=chunk, memory=memory))


def each_chunk(
    model: nn.Module,
    hidden: Tensor,
    compute: Callable[..., T],
    *beside: Tensor,
    chunk: int | None = None,
    memory: LogitsMemory | None = None,
) -> list[T]:
    """Computes something from the log-probabilities of next tokens, chunk by chunk.

    Args:
        model: a causal LM, for its head.
        hidden: last hidden states after the final norm, (N, D).
        compute: takes log-probabilities (c, vocabulary), in at least float32, and the same rows of
            ``beside``. It may write to the log-probabilities if nothing needs their gradients.
        *beside: what belongs to the tokens, (N, ...) each.
        chunk: tokens whose logits are in memory together; None for ``chunk_tokens``.
        memory: for logits; None for new memory.

    Returns:
        What was computed of each chunk.
    """
    head, finish = model.get_output_embeddings(), Finish.of(model)  # type: ignore[operator]
    chunk = chunk or chunk_tokens(head.weight.shape[0])
    memory = memory or LogitsMemory()
    in_place = _works_in_place(head, hidden)
    if in_place:
        chunk *= 2  # the only tensor of this size is the logits

    def of(states: Tensor) -> Tensor:
        if in_place:
            return _log_probabilities_in_place(head, finish, states, memory)
        return _widened(finish(head(states))).log_softmax(1)

    split = (tensor.split(chunk) for tensor in (hidden, *beside))
    # Not in a variable, which would hold the log-probabilities of one chunk beside the next.
    return [compute(of(states), *rows) for states, *rows in zip(*split, strict=True)]


@torch.no_grad()
def sequence_losses(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Computes the mean next-token cross-entropy of each sequence: (B, T) -> (B,) in nats."""
    embeddings: Any = model.get_input_embeddings()
    ids = input_ids.to(embeddings.weight.device)
    hidden = base_model(model)(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, D)
    losses = token_losses(model, hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return losses.view(len(ids), -1).mean(dim=1)


def next_token_logits(
    model: PreTrainedModel, input_ids: Tensor, cache: Cache | None = None
) -> tuple[Tensor, Cache]:
    """Computes the logits after the last token of each text, and the cache to resume from.

    The result is that of ``logits_to_keep=1``, but faster on a CPU: that option gives the head a
    slice of all hidden states, for which torch copies the head's weights once for each text.

    Args:
        model: a causal LM.
        input_ids: (B, T) int64; with a cache, what follows the tokens in it.
        cache: keys and values of earlier tokens.

    Returns:
        Logits (B, vocabulary) and the cache.
    """
    embeddings: Any = model.get_input_embeddings()
    ids = input_ids.to(embeddings.weight.device)
    output = base_model(model)(input_ids=ids, past_key_values=cache, use_cache=True)
    last = output.last_hidden_state[:, -1].contiguous()
    return logits_of(model, last), output.past_key_values


def logits_of(model: nn.Module, hidden: Tensor) -> Tensor:
    """Computes the model's logits of last hidden states: (..., D) -> (..., vocabulary)."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    logits: Tensor = Finish.of(model)(head(hidden))
    return logits


class Finish(NamedTuple):
    """What a model does to the outputs of its head.

    Attributes:
        divisor: of the outputs (Granite); None for 1.
        cap: c of the soft-capping c tanh(x / c) (Gemma 2); None without it.
        factor: of the outputs (Cohere); None for 1.
    """

    divisor: float | None = None
    cap: float | None = None
    factor: float | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "Finish":
        """Reads it from a model's configuration."""
        config = getattr(model, "config", None)
        names = ("logits_scaling", "final_logit_softcapping", "logit_scale")
        return cls(*(getattr(config, name, None) for name in names))

    def __call__(self, logits: Tensor) -> Tensor:
        """Computes the logits, in the same operations as transformers."""
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.factor is not None:
            logits = logits * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def in_place(self, logits: Tensor) -> None:
        """Computes the logits in memory of their own."""
        if self.divisor is not None:
            logits.div_(self.divisor)
        if self.factor is not None:
            logits.mul_(self.factor)
        if self.cap is not None:
            logits.div_(self.cap).tanh_().mul_(self.cap)


def _losses(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """Picks the losses of the tokens that follow: (N, vocabulary) and (N,) -> (N,)."""
    return F.nll_loss(log_probabilities, targets.to(log_probabilities.device), reduction="none")


def _works_in_place(head: nn.Module, hidden: Tensor) -> bool:
    """Tells if a head is a plain projection on a CPU whose logits need no gradient and no cast."""
    if torch.is_grad_enabled() or type(head) is not nn.Linear:
        return False
    on_cpu = head.weight.is_cpu and hidden.is_cpu
    return on_cpu and head.weight.dtype in (torch.float32, torch.float64)


def _log_probabilities_in_place(
    head: nn.Linear, finish: Finish, hidden: Tensor, memory: LogitsMemory
) -> Tensor:
    """Computes log-probabilities (N, vocabulary), which overwrite the logits."""
    logits = memory.take(len(hidden), len(head.weight), head.weight.dtype)  # (N, vocabulary)
    if head.bias is None:
        torch.mm(hidden, head.weight.T, out=logits)
    else:
        torch.addmm(head.bias, hidden, head.weight.T, out=logits)
    finish.in_place(logits)
    return torch.log_softmax(logits, 1, out=logits)  # in place


def _compiled_losses(head: nn.Linear, finish: Finish, hidden: Tensor, targets: Tensor) -> Tensor:
    from torch._dynamo.exc import TorchDynamoException

    try:
        return compiled_head_and_loss(finish)(hidden, head.weight, head.bias, targets)
    except TorchDynamoException as error:
        raise PruningError(
            f"head and loss cannot be compiled ({first_line(error)}); leave out --compile-head, or "
            "install what torch.compile needs, such as a C++ compiler"
        ) from error


# Compiled once for all models: weights are arguments, and shapes do not change.
@cache
def compiled_head_and_loss(
    finish: Finish,
) -> Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]:
    """Compiles the losses of hidden states by the head's weight and bias, and targets."""

    def losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        logits = _widened(finish(F.linear(hidden, weight, bias)))
        return F.cross_entropy(logits, targets.to(logits.device), reduction="none")

    return torch.compile(losses)


def _widened(logits: Tensor) -> Tensor:
    """Converts logits to at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
