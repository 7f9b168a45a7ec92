import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bits_per_byte import model_bits_per_byte, token_bytes
from ngram import KneserNey, mixture_weight
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pgprune.data import builtin_text
from pgprune.data.builtin_text import (
    builtin_documents,
    is_held_out,
    module_family,
    paragraph_key,
    split_paragraphs,
)
from pgprune.errors import PruningError
from pgprune.models.source import BUILTIN


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUILTIN)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BUILTIN, dtype=torch.float32).eval()


@pytest.fixture
def fresh_text():
    caches = (builtin_text._code_documents, builtin_text._prose_documents)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def size(domain, split):
    return sum(len(text.encode()) for text in builtin_documents(domain, split))


def share(domain):
    train, held_out = (size(domain, split) for split in ("train", "heldout"))
    return held_out / (train + held_out)


def test_the_split_never_changes():
    held_out = ["asyncio", "concurrent", "os", "tomllib", "xml"]
    training = ["argparse", "collections", "datetime", "decimal", "re", "typing", "urllib"]
    assert all(is_held_out("code", name) for name in held_out)
    assert not any(is_held_out("code", name) for name in training)
    assert all(is_held_out("prose", name) for name in ["class", "compound", "for", "yield"])
    assert not any(is_held_out("prose", name) for name in ["if", "while", "try", "debugger"])


def test_a_third_of_the_prose_and_a_sixth_of_the_code_are_held_out():
    assert 0.27 < share("prose") < 0.40
    assert 0.10 < share("code") < 0.22


@pytest.mark.parametrize(
    ("private", "public"),
    [
        ("_pydatetime", "datetime"),
        ("_pydecimal", "decimal"),
        ("_pyio", "io"),
        ("_py_warnings", "warnings"),
        ("_strptime", "strptime"),
        ("_collections_abc", "collections"),
        ("sre_parse", "re"),
        ("__future__", "future"),
        ("py_compile", "py_compile"),
        ("pydoc", "pydoc"),
    ],
)
def test_modules_that_moved_stay_on_their_side(private, public):
    assert module_family(private) == public
    assert is_held_out("code", private) == is_held_out("code", public)


def test_no_held_out_paragraph_of_prose_is_trained_on():
    train, held_out = (
        {
            paragraph_key(p)
            for text in builtin_documents("prose", split)
            for p in split_paragraphs(text)
        }
        for split in ("train", "heldout")
    )
    assert train and held_out and not train & held_out


def test_the_same_code_in_the_same_order_every_time(fresh_text):
    first = builtin_documents("code", "heldout")
    builtin_text._code_documents.cache_clear()
    assert builtin_documents("code", "heldout") == first
    shared = set(first) & set(builtin_documents("code", "train"))
    assert sum(map(len, shared)) < 1000  # an __init__.py of one comment, say


def test_a_python_without_sources_is_one_clear_error(fresh_text, monkeypatch, tmp_path):
    monkeypatch.setattr(builtin_text.sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    with pytest.raises(PruningError, match="no library sources"):
        builtin_documents("code", "train")


def test_a_python_without_its_reference_is_one_clear_error(fresh_text, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(PruningError, match="lacks pydoc_data"):
        builtin_documents("prose", "train")


def test_an_unknown_part_is_one_clear_error():
    with pytest.raises(PruningError, match="choose code or prose"):
        builtin_documents("poetry", "train")


def test_unreadable_and_skipped_sources_are_left_out(fresh_text, monkeypatch, tmp_path):
    for name in ("os.py", "re.py", "json/decoder.py", "json/tests/test_json.py", "test/bad.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "ast.py").write_bytes(b"\xff")
    monkeypatch.setattr(builtin_text.sysconfig, "get_path", lambda name: str(tmp_path))
    assert builtin_documents("code", "heldout") == ["os.py"]
    assert builtin_documents("code", "train") == ["json/decoder.py", "re.py"]


def test_the_model_is_deep_with_grouped_queries_and_small(model):
    config = model.config
    assert 3e6 <= sum(p.numel() for p in model.parameters()) <= 5e6
    assert config.num_hidden_layers >= 12
    assert config.num_key_value_heads >= 4
    assert config.num_attention_heads >= 2 * config.num_key_value_heads
    assert sum(file.stat().st_size for file in BUILTIN.iterdir()) <= 12 * 2**20
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_the_tokenizer_starts_with_bos_and_is_lossless(tokenizer):
    text = "def f(x):\n\treturn  'é'  # 数\n"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 0
    assert tokenizer.eos_token_id == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())


def test_the_facts_of_the_training_are_beside_the_model():
    facts = json.loads((BUILTIN / "training.json").read_text())
    bits = facts["held_out_bits_per_byte"]
    for domain in ("code", "prose"):
        assert bits["model, windows of 128"][domain] < bits["4-gram"][domain]


def test_the_model_is_better_than_a_4_gram(model, tokenizer):
    """On a slice; training.json has the figures for all of the text."""
    ids = tokenizer(builtin_documents("prose", "train"), verbose=False)["input_ids"]
    ngram = KneserNey(np.concatenate(ids), len(tokenizer))
    held_out = tokenizer(builtin_documents("prose", "heldout"), verbose=False)["input_ids"]
    stream = np.concatenate(held_out)
    windows = stream[: len(stream) // 128 * 128].reshape(-1, 128)
    scored = np.arange(windows.size).reshape(-1, 128)[:, 1:]
    bits = -np.log2(ngram.probabilities(stream)[scored]).sum()
    per_byte = bits / token_bytes(tokenizer)[windows[:, 1:]].sum()
    assert model_bits_per_byte(model, tokenizer, "prose", every=16) < 0.8 * per_byte


def test_kneser_ney_sums_to_one_and_beats_shorter_contexts():
    random = np.random.default_rng(0)
    stream = random.integers(0, 7, 4000)
    stream[3::4] = (stream[0::4] + stream[1::4]) % 7
    ngram = KneserNey(stream[:3000], 7)
    nexts = np.stack([np.append(stream[100:103], token) for token in range(7)])
    assert sum(ngram.probabilities(row)[-1] for row in nexts) == pytest.approx(1)
    bits = [
        -np.log2(KneserNey(stream[:3000], 7, order).probabilities(stream[3000:])).mean()
        for order in (1, 4)
    ]
    assert bits[1] < bits[0]


def test_mixture_weight_is_the_most_likely_one():
    first, second = np.random.default_rng(0).random((2, 500))
    weight = mixture_weight(first, second)
    likelihood = [np.log(w * first + (1 - w) * second).sum() for w in np.linspace(0.01, 0.99, 99)]
    assert weight == pytest.approx(np.linspace(0.01, 0.99, 99)[np.argmax(likelihood)], abs=0.02)


def test_the_fast_training_loss_is_hugging_faces(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tools" / "builtin_model")
    with torch.compiler.set_stance("force_eager"):
        from fast_llama import fast_loss

        sizes = {"vocab_size": 31, "hidden_size": 24, "intermediate_size": 20}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3}
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes, head_dim=4, tie_word_embeddings=True))
        ids = torch.randint(31, (3, 9))
        expected = model(input_ids=ids, labels=ids).loss
        torch.testing.assert_close(fast_loss(model, ids, torch.float32), expected)
