"""Helpers of the tests of GGUF files: runs of tiny models whose tokenizer llama.cpp knows."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from helpers.finished_run import finished_run
from helpers.tiny import tiny_model
from pgprune.export.gguf_vocabulary import write_vocabulary
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


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def dense_gguf(path: Path, model, tokenizer=None, more=None, **keys) -> Path:
    """Writes a dense model as llama.cpp's converter does, without quantizing it.

    Args:
        path: the new file.
        model: a LLaMA, Qwen2, Qwen3 or Phi-3.
        tokenizer: None for one that has the model's size; False for a file without one.
        more: further tensors by name.
        keys: further keys of the architecture, such as ``rope.scaling.type``, or its name as
            ``architecture``.
    """
    import gguf

    config = model.config
    architecture = keys.pop("architecture", config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = model.model.layers[0].self_attn.head_dim
    writer.add_key_length(head_dim)
    writer.add_vocab_size(config.vocab_size)
    for key, value in keys.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"{architecture}.{key.replace('__', '.')}", value)
    if tokenizer is not False:
        write_vocabulary(writer, tokenizer or byte_tokenizer(), config.vocab_size)
    for name, weight in model.named_parameters():
        module, _, kind = name.rpartition(".")
        stem, part = "", module
        if module.startswith("model.layers."):
            _, _, layer, part = module.split(".", 3)
            stem = f"blk.{layer}."
        if config.model_type == "llama" and part.endswith(("q_proj", "k_proj")):
            halves = weight.unflatten(0, (-1, 2, head_dim // 2))  # (h, 2, d / 2, ...)
            weight = halves.transpose(1, 2).flatten(0, 2)
        writer.add_tensor(f"{stem}{NAMES[part]}.{kind}", weight.detach().float().numpy())
    for name, weight in (more or {}).items():
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
