"""Measures bits per byte of the held-out built-in text, of a model and of an n-gram."""

import math

import numpy as np
import torch
from ngram import KneserNey, mixture_weight
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from pgprune.data.builtin_text import Domain, Split, builtin_documents

DOMAINS: tuple[Domain, Domain] = ("code", "prose")


def encoded_documents(
    tokenizer: PreTrainedTokenizerBase, domain: Domain, split: Split
) -> list[np.ndarray]:
    """Returns the token ids of each built-in document, its BOS included."""
    encoded = tokenizer(builtin_documents(domain, split), verbose=False)["input_ids"]
    return [np.array(ids) for ids in encoded]


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Returns the number of bytes of text of each token; special tokens have none."""
    # In byte-level BPE, each character of a token stands for one byte.
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_tokens)
    return np.array([0 if token in special else len(token) for token in tokens])


def windows_of(tokens: np.ndarray, length: int) -> np.ndarray:
    """Cuts a stream into (windows, length); the rest is dropped."""
    return tokens[: len(tokens) // length * length].reshape(-1, length)


def model_bits_per_byte(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    domain: Domain,
    length: int = 128,
    every: int = 1,
) -> float:
    """Measures the bits that the model needs per byte of held-out text.

    Each window is read on its own and its first token is not predicted. One window in ``every`` is
    evaluated.
    """
    stream = np.concatenate(encoded_documents(tokenizer, domain, "heldout"))
    windows = windows_of(stream, length)[::every]
    nats = sum(_nats(model, chunk) for chunk in torch.from_numpy(windows).split(32))
    return nats / math.log(2) / float(token_bytes(tokenizer)[windows[:, 1:]].sum())


def ngram_bits_per_byte(tokenizer: PreTrainedTokenizerBase) -> dict[Domain, float]:
    """Measures the same of an interpolated 4-gram, on the same windows of 128 tokens.

    The n-gram knows the tokens before the window. It mixes counts of all the training text with
    counts of the domain, by a weight that is fitted on every twentieth training document.
    """
    training = {domain: encoded_documents(tokenizer, domain, "train") for domain in DOMAINS}
    # The weight is fitted on documents that the counts of ``tried`` do not contain.
    tuning = {domain: documents[::20] for domain, documents in training.items()}
    rest = {domain: _without(documents) for domain, documents in training.items()}
    fitted, tried = _Mixture(training, len(tokenizer)), _Mixture(rest, len(tokenizer))
    sizes = token_bytes(tokenizer)
    result: dict[Domain, float] = {}
    for domain in DOMAINS:
        weight = mixture_weight(*tried.probabilities(domain, np.concatenate(tuning[domain])))
        stream = np.concatenate(encoded_documents(tokenizer, domain, "heldout"))
        general, of_domain = fitted.probabilities(domain, stream)
        scored = windows_of(np.arange(len(stream)), 128)[:, 1:]  # positions in the stream
        bits = -np.log2(weight * general + (1 - weight) * of_domain)[scored].sum()
        result[domain] = float(bits / sizes[stream[scored]].sum())
    return result


class _Mixture:
    """An n-gram of all the text beside one of each domain."""

    def __init__(self, documents: dict[Domain, list[np.ndarray]], vocabulary: int):
        streams = {domain: np.concatenate(parts) for domain, parts in documents.items()}
        self.general = KneserNey(np.concatenate(list(streams.values())), vocabulary)
        self.by_domain = {name: KneserNey(part, vocabulary) for name, part in streams.items()}

    def probabilities(self, domain: Domain, stream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.general.probabilities(stream), self.by_domain[domain].probabilities(stream)


def _without(documents: list[np.ndarray]) -> list[np.ndarray]:
    return [document for index, document in enumerate(documents) if index % 20]


@torch.no_grad()
def _nats(model: LlamaForCausalLM, windows: torch.Tensor) -> float:
    logits = model(input_ids=windows, use_cache=False).logits[:, :-1].float()
    targets = windows[:, 1:].flatten()
    return functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum").item()
