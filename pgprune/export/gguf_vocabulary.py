"""Writes the vocabulary of a GGUF file: a Hugging Face tokenizer in the terms of llama.cpp.

llama.cpp has other tokenizers. What is written here makes them cut texts as the Hugging Face
tokenizer does; where that is not sure, it is refused, and a GGUF file of the dense model can lend
its vocabulary. Two kinds can be written: BPE over bytes, whose way of cutting words llama.cpp must
know by name, and BPE over characters with bytes as a fallback, as converted from SentencePiece.
Sources: llama.cpp, src/llama-vocab.cpp; tokenizers, the format of tokenizer.json.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from transformers import PreTrainedTokenizerBase

from pgprune.errors import PruningError
from pgprune.inspection.gguf_files import load_gguf

_SPACE = "\u2581"  # what SentencePiece writes for a space
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of GPT-2


def _words(digits: str) -> str:
    """The expression that Llama 3 and Qwen2 cut words by; they differ in numbers only."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    ((_WORDS,), False): "gpt-2",
    ((r"\p{N}", _WORDS), False): "smollm",
    ((_words(r"\p{N}{1,3}"),), True): "llama-bpe",
    ((_words(r"\p{N}"),), False): "qwen2",
}
"""llama.cpp's names, by the expressions that cut a text and whether whole words skip merging."""


def write_vocabulary(writer: Any, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Gives a GGUF file the vocabulary of a Hugging Face tokenizer.

    Args:
        writer: a ``gguf.GGUFWriter``.
        tokenizer: of the model.
        size: how many tokens the model knows; those that the tokenizer lacks are marked unused.

    Raises:
        PruningError: llama.cpp could not be made to cut texts in the same way.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        _refuse("it is written in Python")
    described = json.loads(backend.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        _refuse(f"it is of the type {model['type']}")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        _refuse("it marks where words begin or end")
    _write_special_tokens(writer, tokenizer)
    if model.get("byte_fallback"):
        _write_sentencepiece(writer, described)
    else:
        _write_byte_level(writer, described)
    _write_tokens(writer, described, tokenizer.get_vocab(), size)


def _write_special_tokens(writer: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes which tokens begin, end and fill texts, and whether a prompt gets them."""
    if tokenizer.eos_token_id is None:
        _refuse("it has no token for the end of a text")
    # How a tokenizer begins and ends a text shows in what it makes of a letter.
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    bos = [tokenizer.bos_token_id] if ids[:1] == [tokenizer.bos_token_id] != plain[:1] else []
    eos = [tokenizer.eos_token_id] if ids[-1:] == [tokenizer.eos_token_id] != plain[-1:] else []
    if ids != bos + plain + eos:
        _refuse("it adds other tokens to a text than one at its beginning and one at its end")
    writer.add_add_bos_token(bool(bos))
    writer.add_add_eos_token(bool(eos))
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    if tokenizer.chat_template:
        _write_chat_templates(writer, tokenizer.chat_template)


def _write_chat_templates(writer: Any, templates: str | Mapping[str, str]) -> None:
    """Writes one chat template or several by name, of which llama.cpp takes ``default``."""
    if isinstance(templates, str):
        templates = {"default": templates}
    keys = load_gguf().Keys.Tokenizer
    # Names stand in keys of the file, as letters, digits and underscores.
    named = {re.sub("[^A-Za-z0-9]", "_", name): text for name, text in templates.items()}
    if len(named) < len(templates):
        _refuse("names of its chat templates differ in special characters only")
    if default := named.pop("default", None):
        writer.add_string(keys.CHAT_TEMPLATE, default)
    for name, text in named.items():
        writer.add_string(keys.CHAT_TEMPLATE_N.format(name=name), text)
    if named:
        writer.add_array(keys.CHAT_TEMPLATES, list(named))


def _write_tokens(
    writer: Any, described: Mapping[str, Any], vocabulary: Mapping[str, int], size: int
) -> None:
    """Writes all tokens with the type of each."""
    types = load_gguf().TokenType
    if (last := max(vocabulary.values())) >= size:
        _refuse(f"it has token {last:,}, but the model knows {size:,} tokens only")
    kinds = dict.fromkeys(vocabulary, types.NORMAL)
    for added in described["added_tokens"]:
        kinds[added["content"]] = types.CONTROL if added["special"] else types.USER_DEFINED
    if described["model"].get("byte_fallback"):
        kinds |= dict.fromkeys(_BYTES, types.BYTE)
        kinds |= {described["model"]["unk_token"]: types.UNKNOWN}
    # Models may know more tokens than their tokenizer; the rest is never produced.
    texts = [f"[PAD{token}]" for token in range(size)]
    numbers = [int(types.UNUSED)] * size
    for text, token in vocabulary.items():
        texts[token], numbers[token] = text, int(kinds[text])
    writer.add_token_list(texts)
    writer.add_token_types(numbers)
    if described["model"].get("byte_fallback"):
        scores = _scores(described)
        writer.add_token_scores([scores.get(text, -float(len(scores))) for text in texts])


def _write_byte_level(writer: Any, described: Mapping[str, Any]) -> None:
    """Writes how a BPE over bytes cuts texts. llama.cpp skips NFC, which most texts are in."""
    model, normalizer = described["model"], described["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        _refuse(f"it normalises texts by {normalizer['type']}")
    # llama.cpp knows expressions by name only, so both must be the same.
    cuts = tuple(_cuts(_steps(described["pre_tokenizer"], "pretokenizers")))
    name = _PRE_TOKENIZERS.get((cuts, bool(model.get("ignore_merges"))))
    if name is None or not model["merges"]:
        _refuse("llama.cpp has no name that is known here for how it cuts texts into words")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_merges([" ".join(pair) for pair in _pairs(model)])


def _cuts(steps: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Returns the expressions that cut a text into words, in order."""
    for step in steps:
        match step:
            case {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated"}:
                yield cut
            case {"type": "Digits", "individual_digits": True}:
                yield r"\p{N}"
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
                yield _WORDS
            # This step maps bytes to characters and cuts nothing.
            case {"type": "ByteLevel", "add_prefix_space": False}:
                pass
            case _:
                yield f"unknown: {step['type']}"


def _write_sentencepiece(writer: Any, described: Mapping[str, Any]) -> None:
    """Writes how a BPE that was converted from SentencePiece cuts texts."""
    steps = _steps(described["normalizer"], "normalizers")
    steps += _steps(described["pre_tokenizer"], "pretokenizers")
    match steps:
        # Older conversions replace spaces as they normalise, newer ones as they cut.
        case [{"type": "Prepend", "prepend": p}, {"type": "Replace", "content": c, "pattern": s}]:
            known, prefix = p == c == _SPACE and s == {"String": " "}, True
        case [{"type": "Metaspace", "replacement": c, "prepend_scheme": scheme, "split": False}]:
            known, prefix = c == _SPACE, scheme != "never"
        case _:
            known = prefix = False
    if not known:
        _refuse("it prepares texts in a way that is not SentencePiece's")
    if not set(_BYTES) <= described["model"]["vocab"].keys():
        _refuse("it lacks tokens for some bytes")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_add_space_prefix(prefix)


def _scores(described: Mapping[str, Any]) -> dict[str, float]:
    """The score of each token that merges make, the best first.

    SentencePiece joins any two neighbours that make a token, and first those that make the one with
    the best score. Merges in their order do the same if all that make one token follow each other,
    and none of two that make a token is missing.
    """
    model = described["model"]
    vocabulary, merges = model["vocab"], _pairs(model)
    scores: dict[str, float] = {}
    last = None
    for left, right in merges:
        # The merges of one token must follow each other, or no score orders them.
        if left + right != last and left + right in scores:
            _refuse("its merges are not those of scores")
        last = left + right
        scores.setdefault(last, -float(len(scores)))
    possible = set(merges)
    named = {token["content"] for token in described["added_tokens"]}.union(_BYTES)
    # SentencePiece may join any two tokens into a third, so every such pair must be there.
    for text in vocabulary.keys() - named:
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            joined = all(len(part) == 1 or part in vocabulary for part in (left, right))
            if joined and (left, right) not in possible:
                _refuse("its merges are not those of scores")
    if model.get("ignore_merges"):
        _refuse("it takes whole words without merging")
    return scores


def _steps(described: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """Returns the steps of a sequence, or the only step, or none."""
    if described is None:
        return []
    return list(described[name]) if described["type"] == "Sequence" else [described]


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Yields the merges in their order; older files have them as one string each."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return [(left, right) for left, right in pairs]


def _refuse(reason: str) -> NoReturn:
    raise PruningError(
        f"the tokenizer cannot be written into a GGUF file ({reason}); give a GGUF file of the "
        "dense model by --vocab-gguf"
    )
