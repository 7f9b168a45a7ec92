"""Bits per byte of the held-out built-in text: a model's, and an n-gram's on the same tokens."""

import math

import numpy as np
import torch
from ngram import KneserNey, mixture_weight
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune.data.builtin_text import Domain, Split, builtin_documents

DOMAINS: tuple[Domain, Domain] = ("code", "prose")


def encoded_documents(
    tokenizer: PreTrainedTokenizerBase, domain: Domain, split: Split
) -> list[np.ndarray]:
    """Token ids of each built-in document, its BOS included.

    Args:
        tokenizer: the built-in model's.
        domain: code or prose.
        split: train or heldout.

    Returns:
        One array per document.
    """
    encoded = tokenizer(builtin_documents(domain, split), verbose=False)["input_ids"]
    return [np.array(ids) for ids in encoded]


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """How many bytes of text each token stands for; special tokens stand for none."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_tokens)
    return np.array([0 if token in special else len(token) for token in tokens])


def windows_of(tokens: np.ndarray, length: int) -> np.ndarray:
    """Cuts a stream into (windows, length); the rest is dropped."""
    return tokens[: len(tokens) // length * length].reshape(-1, length)


def model_bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    domain: Domain,
    length: int = 128,
    every: int = 1,
) -> float:
    """Bits that the model needs per byte of held-out text.

    Each window is read on its own and its first token is not predicted.

    Args:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        domain: code or prose.
        length: tokens of a window.
        every: evaluate only one in so many windows.

    Returns:
        Bits per byte.
    """
    stream = np.concatenate(encoded_documents(tokenizer, domain, "heldout"))
    windows = windows_of(stream, length)[::every]
    nats = sum(_nats(model, chunk) for chunk in torch.from_numpy(windows).split(32))
    return nats / math.log(2) / float(token_bytes(tokenizer)[windows[:, 1:]].sum())


def ngram_bits_per_byte(
    tokenizer: PreTrainedTokenizerBase, order: int = 4, length: int = 128, every: int = 1
) -> dict[Domain, float]:
    """The same figure of an interpolated n-gram, on the same tokens as the model.

    The n-gram knows the tokens before the window, and mixes counts of all the training text with
    counts of the domain's, by a weight that every twentieth training document decides.

    Args:
        tokenizer: the built-in model's.
        order: the longest n-gram.
        length: tokens of a window, of which the first is not counted.
        every: evaluate only one in so many windows.

    Returns:
        Bits per byte by domain.
    """
    training = {domain: encoded_documents(tokenizer, domain, "train") for domain in DOMAINS}
    tuning = {domain: documents[::20] for domain, documents in training.items()}
    rest = {domain: _without(documents) for domain, documents in training.items()}
    fitted, tried = _Mixture(training, len(tokenizer), order), _Mixture(rest, len(tokenizer), order)
    sizes = token_bytes(tokenizer)
    result: dict[Domain, float] = {}
    for domain in DOMAINS:
        weight = mixture_weight(*tried.probabilities(domain, np.concatenate(tuning[domain])))
        stream = np.concatenate(encoded_documents(tokenizer, domain, "heldout"))
        general, own = fitted.probabilities(domain, stream)
        scored = windows_of(np.arange(len(stream)), length)[::every, 1:]
        bits = -np.log2(weight * general + (1 - weight) * own)[scored].sum()
        result[domain] = float(bits / sizes[stream[scored]].sum())
    return result


class _Mixture:
    """An n-gram of all the text beside one of each domain."""

    def __init__(self, documents: dict[Domain, list[np.ndarray]], vocabulary: int, order: int):
        streams = {domain: np.concatenate(parts) for domain, parts in documents.items()}
        self.general = KneserNey(np.concatenate(list(streams.values())), vocabulary, order)
        self.own = {
            domain: KneserNey(stream, vocabulary, order) for domain, stream in streams.items()
        }

    def probabilities(self, domain: Domain, stream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.general.probabilities(stream), self.own[domain].probabilities(stream)


def _without(documents: list[np.ndarray]) -> list[np.ndarray]:
    return [document for index, document in enumerate(documents) if index % 20]


@torch.no_grad()
def _nats(model: PreTrainedModel, windows: torch.Tensor) -> float:
    logits = model(input_ids=windows, use_cache=False).logits[:, :-1].float()
    targets = windows[:, 1:].flatten()
    return functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum").item()
