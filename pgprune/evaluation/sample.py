"""Samples text from the dense model and from the pruned one."""

from collections.abc import Mapping
from itertools import takewhile

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune.losses.tokens import next_token_logits
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.pruned import pruned
from pgprune.repair.repair import Repair, repaired
from pgprune.utils.progress import phase, track

PROMPTS = 2
PROMPT_TOKENS = 32
NEW_TOKENS = 48


def sample_text(
    lm: MaskedLM,
    mask: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    windows: Mapping[str, Tensor],
    repair: Repair | None = None,
) -> list[dict[str, str]]:
    """Lets the dense model and then the pruned one continue the beginnings of held-out text.

    Decoding is greedy, so that nothing but the mask and its repair makes the difference.

    Args:
        lm: the model; its weights stay as they are.
        mask: (n,) of zeros and ones.
        tokenizer: of the model.
        windows: of evaluation text by its name, (N, T) int64.
        repair: what comes with the mask.

    Returns:
        For each prompt: ``text`` (the name), ``prompt``, ``dense`` and ``pruned``.
    """
    model: PreTrainedModel = lm.model  # type: ignore[assignment]
    # Half of a short context for the prompt, the other half for what follows.
    limit = getattr(model.config, "max_position_embeddings", PROMPT_TOKENS + NEW_TOKENS)
    names, prompts = _prompts(windows, min(PROMPT_TOKENS, limit // 2))  # (P, T)
    new = min(NEW_TOKENS, limit - prompts.shape[1])
    # Both models read each prompt once, and then every new token but the last.
    lm.meter.add(2 * len(prompts) * (prompts.shape[1] + new - 1))
    with phase("sampling text of dense, pruned"):
        dense = continue_greedily(model, prompts, new)
        # The repair holds the weights of kept units only, and the mask prunes the rest.
        with pruned(lm, mask), repaired(lm, repair or Repair()):
            smaller = continue_greedily(model, prompts, new)
    return [
        {
            "text": name,
            "prompt": _text(tokenizer, prompt.tolist()),
            "dense": _continuation(tokenizer, prompt, first),
            "pruned": _continuation(tokenizer, prompt, second),
        }
        for name, prompt, first, second in zip(names, prompts, dense, smaller, strict=True)
    ]


@torch.inference_mode()
def continue_greedily(model: PreTrainedModel, prompts: Tensor, new_tokens: int) -> Tensor:
    """Appends the likeliest next token again and again: (P, T) -> (P, new_tokens) on the CPU."""
    cache, token, tokens = None, prompts, []
    for _ in track(range(new_tokens), "tokens"):
        logits, cache = next_token_logits(model, token, cache)
        token = logits.argmax(dim=-1, keepdim=True)  # (P, 1)
        tokens.append(token.cpu())
    return torch.cat(tokens, dim=1)


def _prompts(windows: Mapping[str, Tensor], length: int) -> tuple[list[str], Tensor]:
    """Takes names and tokens (P, length) of beginnings of windows, evenly from the first texts."""
    names = list(windows)[:PROMPTS]
    length = min(length, *(windows[name].shape[1] for name in names))  # they may differ
    each = PROMPTS // len(names)
    # Prompts from different places of a text say more than its beginning alone.
    chosen = [
        (name, windows[name][number * len(windows[name]) // each, :length])
        for name in names
        for number in range(each)
    ]
    return [name for name, _ in chosen], torch.stack([window for _, window in chosen])


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: Tensor, new: Tensor) -> str:
    """Decodes what the new tokens add to the prompt's text, up to the end of the document."""
    tokens = list(takewhile(lambda token: token != tokenizer.eos_token_id, new.tolist()))
    # Some tokenizers drop the space before a text's first word, so both are decoded together.
    whole = _text(tokenizer, [*prompt.tolist(), *tokens])
    return whole.removeprefix(_text(tokenizer, prompt.tolist()))


def _text(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))
