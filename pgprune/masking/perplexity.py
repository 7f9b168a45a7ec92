"""Perplexity of a model under masks, and the tokenizer properties that it depends on."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pgprune.data.tokens import window_start
from pgprune.losses.windows import perplexity_of, window_losses
from pgprune.masking.masked_lm import MaskedLM

# Numbers, spaces, accents, code, Chinese and an emoji: tokenizers differ in how they cut these.
_PROBE = "It's 12,345.67 naïve  Köln cafés\n\tdef f(x): return [x] * 2  # 漢字 🙂"


def perplexity(
    lm: MaskedLM, mask: Tensor, windows: Tensor, batch_size: int | None = None
) -> float | list[float]:
    """Computes the perplexity: exp of the mean cross-entropy over all predicted tokens.

    The first token of each window is not predicted. All windows have one length, so the mean over
    windows of their mean losses is the mean over tokens. It is taken in float64.

    Args:
        lm: the frozen model.
        mask: one mask (n,), or several (K, n) that are evaluated together.
        windows: token ids, (N, T) int64.
        batch_size: windows of one call, as ``window_losses`` takes it.

    Returns:
        The perplexity, or a list of K. It is NaN if any loss is, and inf where it overflows.
    """
    losses = window_losses(partial(lm.losses, torch.atleast_2d(mask)), windows, batch_size)
    values = [perplexity_of(row).value for row in losses]
    return values if mask.ndim == 2 else values[0]


def bos_rule(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names the beginning of documents: perplexities with and without BOS do not compare."""
    ids = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    if window_start(tokenizer) is not None:
        return "one BOS per window"
    return "one BOS per document" if begins else "none"


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Identifies a tokenizer: perplexities of different tokenizers do not compare.

    Returns:
        ``name`` (of its directory, or the hub id), ``class``, ``vocabulary`` (its size) and
        ``hash``, of its vocabulary and its tokens of a test string.
    """
    name = tokenizer.name_or_path
    behaviour = [sorted(tokenizer.get_vocab().items()), tokenizer(_PROBE)["input_ids"]]
    return {
        "name": Path(name).name if Path(name).is_dir() else name,
        "class": type(tokenizer).__name__,
        "vocabulary": len(tokenizer),
        "hash": hashlib.sha256(json.dumps(behaviour).encode()).hexdigest()[:16],
    }
