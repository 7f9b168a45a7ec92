"""Helpers of the tests of GGUF files: runs of tiny models whose tokenizer llama.cpp knows."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from helpers.finished_run import finished_run
from helpers.tiny import tiny_model
from pgprune.masking.units import PruningUnits
from pgprune.runs.run import Run

SIZE = 288
"""Tokens: all bytes, a few words and room for more."""

TEXT = "the quick brown fox jumps over the lazy dog, and it's 2024 again:\n\n   def fox(): pass\t"

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern by which Llama 3 and Qwen2 cut words, with a place for numbers."""


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    """By an expression, then into bytes."""
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def byte_tokenizer(pre_tokenizer=None, **options) -> PreTrainedTokenizerFast:
    """A BPE over bytes with GPT-2's words."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


MERGES = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁th", "e"), ("▁", "th")]
"""In SentencePiece's order: all that make one token follow each other, the best token first."""


def sentencepiece_tokenizer(merges=MERGES, **options) -> PreTrainedTokenizerFast:
    """A BPE over characters, with bytes as a fallback, as LLaMA 2 has it."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [*"▁theabc", "th", "the", "▁the", "▁th"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    options = {"unk_token": "<unk>", "byte_fallback": True} | options
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), **options))
    prepare = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(prepare)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def gguf_run(folder: Path, model, units: PruningUnits, mask: torch.Tensor, tokenizer=None) -> Run:
    """A finished run of a model with a tokenizer of its size."""
    dtype = str(model.dtype).removeprefix("torch.")
    run = finished_run(folder, model, units, mask, dtype)
    (tokenizer or byte_tokenizer()).save_pretrained(folder / "model")
    return run


def small_model(family: str, dtype: torch.dtype = torch.float32, **changes):
    """Makes a tiny random model with the vocabulary of ``byte_tokenizer``."""
    return tiny_model(family, dtype, vocab_size=SIZE, **changes)
