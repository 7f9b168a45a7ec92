"""The vocabulary of GGUF files: what llama.cpp is told of a tokenizer, and copied vocabularies."""

import sys

import pytest
from tokenizers import normalizers, pre_tokenizers, processors

from helpers.gguf_models import (
    MERGES,
    SIZE,
    TEXT,
    WORDS,
    byte_tokenizer,
    sentencepiece_tokenizer,
    split,
)
from pgprune import PruningError
from pgprune.export.gguf_vocabulary import write_vocabulary
from pgprune.inspection.gguf_files import copy_vocabulary, read_vocabulary

gguf = pytest.importorskip("gguf", reason="needs pip install 'pgprune[gguf]'")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def described(tokenizer, size: int = SIZE) -> dict:
    """What a GGUF file would say of a tokenizer."""
    writer = gguf.GGUFWriter(None, "deci")
    write_vocabulary(writer, tokenizer, size)
    return {
        key.removeprefix("tokenizer.ggml."): value.value for key, value in writer.kv_data[0].items()
    }


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), False, "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
            False,
            "smollm",
        ),
        (split(WORDS % r"\p{N}{1,3}"), True, "llama-bpe"),
        (split(WORDS % r"\p{N}"), False, "qwen2"),
    ],
)
def test_words_are_cut_by_a_name(pre_tokenizer, ignore_merges, name):
    tokenizer = byte_tokenizer(pre_tokenizer, ignore_merges=ignore_merges)
    keys = described(tokenizer)
    assert (keys["model"], keys["pre"]) == ("gpt2", name)
    vocabulary = tokenizer.get_vocab()
    assert all(keys["tokens"][token] == text for text, token in vocabulary.items())
    assert keys["tokens"][len(vocabulary) :] == [f"[PAD{i}]" for i in range(len(vocabulary), SIZE)]
    assert set(keys["token_type"][len(vocabulary) :]) == {UNUSED}
    merged = {merge.replace(" ", "") for merge in keys["merges"]}
    assert merged == {text for text in vocabulary if len(text) > 1 and text[0] != "<"}


def test_special_tokens():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    tokenizer.pad_token = "</s>"
    tokenizer.chat_template = "{{ messages }}"
    keys = described(tokenizer)
    assert keys["token_type"][:3] == [CONTROL, CONTROL, NORMAL]
    assert keys["token_type"][tokenizer.get_vocab()["<tool>"]] == USER_DEFINED
    ids = {"bos_token_id": 0, "eos_token_id": 1, "padding_token_id": 1}
    assert {key: keys[key] for key in ids} == ids
    assert keys["tokenizer.chat_template"] == "{{ messages }}"
    assert (keys["add_bos_token"], keys["add_eos_token"]) == (False, False)


def test_named_chat_templates():
    """In one order, so that equal exports are equal files."""
    tokenizer = byte_tokenizer()
    named = {"default": "{{ messages }}", "tool-use": "tools", "rag": "documents", "a": "b"}
    tokenizer.chat_template = named
    keys = described(tokenizer)
    assert keys["tokenizer.chat_template"] == "{{ messages }}"
    assert keys["tokenizer.chat_template.tool_use"] == "tools"
    assert keys["tokenizer.chat_templates"] == ["tool_use", "rag", "a"]
    tokenizer.chat_template = {"only": "this"}
    assert "tokenizer.chat_template" not in described(tokenizer)
    tokenizer.chat_template = named | {"tool_use": "other"}
    with pytest.raises(PruningError, match="its chat templates differ in special characters"):
        described(tokenizer)


def test_tokens_around_every_text():
    tokenizer = byte_tokenizer()
    for template, (bos, eos) in {"<s> $A": (True, False), "<s> $A </s>": (True, True)}.items():
        around(tokenizer, template)
        keys = described(tokenizer)
        assert (keys["add_bos_token"], keys["add_eos_token"]) == (bos, eos)
    around(tokenizer, "<s> <s> $A")
    refuses(tokenizer, "adds other tokens to a text")


def around(tokenizer, template: str) -> None:
    processor = processors.TemplateProcessing(template, None, [("<s>", 0), ("</s>", 1)])
    tokenizer.backend_tokenizer.post_processor = processor


@pytest.mark.parametrize("metaspace", [False, True])
def test_merges_become_scores(metaspace):
    tokenizer = sentencepiece_tokenizer()
    if metaspace:
        tokenizer.backend_tokenizer.normalizer = None
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    keys = described(tokenizer)
    assert (keys["model"], keys["add_space_prefix"]) == ("llama", True)
    scores = dict(zip(keys["tokens"], keys["scores"], strict=True))
    made = ["th", "the", "▁the", "▁th"]
    assert sorted(made, key=scores.__getitem__, reverse=True) == made
    assert min(scores[token] for token in made) > max(scores[token] for token in ("a", "<0x41>"))
    kinds = dict(zip(keys["tokens"], keys["token_type"], strict=True))
    tokens = ("<unk>", "<s>", "<0x41>", "the", "[PAD287]")
    assert [kinds[token] for token in tokens] == [UNKNOWN, CONTROL, BYTE, NORMAL, UNUSED]


def test_merges_that_no_scores_describe():
    refuses(sentencepiece_tokenizer(MERGES[:3] + MERGES[:2:-1]), "not those of scores")  # in turns
    refuses(sentencepiece_tokenizer(MERGES[:3] + MERGES[4:]), "not those of scores")  # one missing


def refuses(tokenizer, message: str, size: int = SIZE) -> None:
    with pytest.raises(PruningError, match=f"{message}.*give a GGUF file .* by --vocab-gguf"):
        described(tokenizer, size)


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        split(r"\p{N}{1,2}"),
        pre_tokenizers.Sequence(
            [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    ],
)
def test_words_without_a_name(pre_tokenizer):
    refuses(byte_tokenizer(pre_tokenizer), "no name that is known here")


def test_merging_that_is_not_what_the_name_means():
    refuses(byte_tokenizer(ignore_merges=True), "no name that is known here")
    refuses(byte_tokenizer(split(WORDS % r"\p{N}{1,3}")), "no name that is known here")
    refuses(sentencepiece_tokenizer(ignore_merges=True), "takes whole words without merging")


def test_texts_that_are_changed_first():
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    refuses(tokenizer, "normalises texts by Lowercase")
    tokenizer = sentencepiece_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    refuses(tokenizer, "prepares texts in a way")


def test_a_tokenizer_without_an_end():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    refuses(tokenizer, "no token for the end of a text")


def test_a_tokenizer_that_is_larger_than_the_model():
    refuses(byte_tokenizer(), "has token 279, but the model knows 279 tokens only", size=279)


@pytest.fixture
def file(tmp_path):
    """A GGUF file with nothing but a vocabulary."""
    return write(
        tmp_path / "vocabulary.gguf", lambda w: write_vocabulary(w, byte_tokenizer(), SIZE)
    )


def write(path, add):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(7)
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fields(path) -> dict:
    found = gguf.GGUFReader(path).fields
    return {key: (field.types[:2], field.contents()) for key, field in found.items()}


def test_a_vocabulary_is_copied_as_it_is(file, tmp_path):
    copy = write(tmp_path / "copy.gguf", lambda w: copy_vocabulary(w, read_vocabulary(file), SIZE))
    assert fields(copy) == fields(file)


def test_a_vocabulary_of_another_size(file):
    with pytest.raises(PruningError, match="has 288 tokens, but the model knows 32,000"):
        copy_vocabulary(gguf.GGUFWriter(None, "deci"), read_vocabulary(file), 32_000)


def test_files_that_are_cut_short(file):
    whole = file.read_bytes()
    end = len(whole.rstrip(b"\0"))  # padding may be missing
    for length in [0, 3, 10, 30, 100, 1000, end // 2, end - 3]:
        file.write_bytes(whole[:length])
        with pytest.raises(PruningError, match="cannot be read|is cut short") as error:
            read_vocabulary(file)
        assert "\n" not in str(error.value)


def test_a_text_that_is_cut_short(tmp_path):
    """The last thing in the file: shorter than it says."""
    path = write(tmp_path / "a.gguf", lambda w: w.add_string("tokenizer.chat_template", TEXT))
    path.write_bytes(path.read_bytes().partition(TEXT.encode())[0] + TEXT[:9].encode())
    with pytest.raises(PruningError, match="is cut short"):
        read_vocabulary(path)


def test_files_that_are_none(tmp_path):
    other = tmp_path / "other.gguf"
    other.write_text("not a GGUF file")
    with pytest.raises(PruningError, match="cannot be read .GGUF magic invalid"):
        read_vocabulary(other)
    with pytest.raises(PruningError, match="cannot be read .[Nn]o such file"):
        read_vocabulary(tmp_path / "nowhere.gguf")
    with pytest.raises(PruningError, match="has no vocabulary"):
        read_vocabulary(write(other, lambda writer: None))


def test_an_installation_without_the_package(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(PruningError, match=r"pip install 'pgprune\[gguf\]'"):
        read_vocabulary(file)
