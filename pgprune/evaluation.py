"""Perplexity of a model under masks, and what it depends on."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pgprune.masked_lm import MaskedLM


def perplexity(
    lm: MaskedLM, mask: Tensor, windows: Tensor, batch_size: int = 8
) -> float | list[float]:
    """Perplexity: exp of the mean cross-entropy over all predicted tokens.

    Each window is read on its own, so its first token is not predicted. All windows are of one
    length, hence the mean over windows of their mean losses is the mean over tokens; it is taken
    in float64.

    Args:
        lm: the frozen model.
        mask: one mask (n,), or several (K, n) that are evaluated together.
        windows: token ids, (N, T) int64.
        batch_size: windows of one call.

    Returns:
        The perplexity, or a list of K. It is NaN if any loss is, and inf where it overflows.
    """
    masks = torch.atleast_2d(mask)  # (K, n)
    losses = [lm.losses(masks, batch).cpu() for batch in windows.split(batch_size)]  # each (K, B)
    values: list[float] = torch.cat(losses, dim=1).double().mean(dim=1).exp().tolist()
    return values if mask.ndim == 2 else values[0]


def bos_rule(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names what documents begin with, as perplexities with and without BOS do not compare."""
    ids = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return "one BOS per document" if begins else "none"
