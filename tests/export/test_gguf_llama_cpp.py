"""GGUF files in llama.cpp: torch's logits, the tokenizer's tokens, the same text."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.gguf_models import (
    WORDS,
    byte_tokenizer,
    gguf_run,
    sentencepiece_tokenizer,
    small_model,
    split,
)
from helpers.masks import patterns
from helpers.pruned import equal_layers
from helpers.tiny import tokens
from pgprune.export.export import ExportConfig, export
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig, load_model
from pgprune.repair.fit import fit_repair
from pgprune.repair.repair import repaired
from pgprune.runs.files import RunFile
from pgprune.surgery.layers import prune

llama_cpp = pytest.importorskip("llama_cpp", reason="needs pip install llama-cpp-python")
pytest.importorskip("gguf", reason="needs pip install 'pgprune[gguf]'")
pytestmark = pytest.mark.slow

TOLERANCE = 1e-4  # of logits whose standard deviation is about 1; measured: 1e-5
TEXTS = [
    "Once upon a time, there was the theatre of The Thebes.",
    "It's 3.14159 o'clock: they'LL say we've  12345678 reasons!!",
    "  two spaces,\ttabs\t\tand\n\nlines\r\n   then the rest   ",
    "naïve café, Straße, 東京 и Москва, ¿qué?, 🙂🙃 the end…",
    "def f(x):\n        return {'the': x**2}  # the a b c\n",
    "the</s><s>a",
]


def load(folder: Path, **options):
    """The file in llama.cpp, with a cache as exact as the weights."""
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    options = {"n_ctx": 256, "n_threads": 1, "verbose": False} | exact | options
    return llama_cpp.Llama(str(folder / "model.gguf"), **options)


def logits(folder: Path, ids: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Of a text (1, T) that is fed piece by piece through the cache."""
    model = load(folder, logits_all=True)
    for piece in ids[0].split(sizes):
        model.eval(piece.tolist())
    return torch.from_numpy(np.array(model.scores[: ids.shape[1]]))


def exported(folder: Path, model, units: PruningUnits, mask, tokenizer=None, **options) -> Path:
    run = gguf_run(folder, model, units, mask, tokenizer)
    return export(run, ExportConfig(format="gguf", **options))


def error(folder: Path, model, units: PruningUnits, mask, **options) -> float:
    """The largest difference between llama.cpp's logits and the masked model's."""
    ids = tokens(batch=1)
    expected = MaskedLM(model, units).logits(mask[None], ids)[0, 0]
    path = exported(folder, model, units, mask, **options)
    whole, pieces = logits(path, ids, (9,)), logits(path, ids, (4, 1, 1, 3))
    assert expected.std() > 0.5  # else any error would be small
    return max(float((found - expected).abs().max()) for found in (whole, pieces))


@pytest.mark.parametrize("granularity", ["heads+channels", "values+channels", "blocks"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "seed_oss"])
def test_logits_are_those_of_the_mask(family, granularity, tmp_path):
    window = {"sliding_window": None} if family == "mistral" else {}
    model = small_model(family, **window)
    units = PruningUnits.of(model, granularity)
    for i, (name, mask) in enumerate(patterns(units).items()):
        if granularity != "blocks" or mask.any():  # else no layer is left
            found = error(tmp_path / str(i), model, units, mask)
            print(f"{family}, {granularity}, {name}: {found:.1e}")  # pytest -s shows it
            assert found < TOLERANCE, name


UNIFORM = {
    "qwen3": {},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 10},
    "granite": {"attention_bias": False, "max_position_embeddings": 256},
}
"""Families whose layers must be equal, and what llama.cpp can compute of them."""


def tolerance(family: str) -> float:
    """llama.cpp looks up GELU in a table of float16; of larger logits."""
    return 0.02 if family.startswith(("gemma", "gpt")) else TOLERANCE


@pytest.mark.parametrize("kept", [{}, {"heads": 1}, {"channels": 5}, {"heads": 1, "channels": 5}])
@pytest.mark.parametrize("family", UNIFORM)
def test_uniform_layers(family, kept, tmp_path):
    model = small_model(family, **UNIFORM[family])
    units = PruningUnits.of(model)
    found = error(tmp_path, model, units, equal_layers(units, **kept), uniform=True)
    print(f"{family}, {kept}: {found:.1e}")
    assert found < tolerance(family)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "granite"])
def test_layers_that_are_gone_take_their_kind_of_attention_with_them(family, tmp_path):
    model = small_model(family, **UNIFORM[family])
    units = PruningUnits.of(model, "layers")
    for layer in range(3):
        mask = units.ones()
        mask[layer] = 0
        assert error(tmp_path / str(layer), model, units, mask) < tolerance(family)


@pytest.mark.parametrize("kept", [{}, {"channels": 8}])
@pytest.mark.parametrize("family", ["phi3", "gpt_neox", "gpt2"])
def test_projections_that_stock_layers_fuse(family, kept, tmp_path):
    window = {"sliding_window": None} if family == "phi3" else {}
    model = small_model(family, **window)
    units = PruningUnits.of(model, "channels")
    found = error(tmp_path, model, units, equal_layers(units, **kept))
    print(f"{family}, {kept}: {found:.1e}")
    assert found < tolerance(family)


@pytest.mark.parametrize("how", ["bias", "least-squares"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_repaired_models(family, how, tmp_path):
    model = small_model(family)
    units = PruningUnits.of(model)
    mask, ids, lm = patterns(units)["some"], tokens(batch=1), MaskedLM(model, units)
    found = fit_repair(lm, mask, tokens(batch=8, seed=1), how)
    with repaired(lm, found):
        expected = lm.logits(mask[None], ids)[0, 0]
    run = gguf_run(tmp_path, model, units, mask)
    found.save(run.path / RunFile.REPAIR)
    run.write_results(run.results)
    path = export(run, ExportConfig(format="gguf"))
    assert float((logits(path, ids, (9,)) - expected).abs().max()) < TOLERANCE


@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_scaled_rotary_embeddings(kind, tmp_path):
    scaling = {"rope_theta": 10000.0, "rope_type": kind, "factor": 8.0}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        scaling |= {"original_max_position_embeddings": 16}
    model = small_model("llama", rope_parameters=scaling)
    units = PruningUnits.of(model)
    assert error(tmp_path, model, units, patterns(units)["some"]) < TOLERANCE


def test_tied_embeddings(tmp_path):
    model = small_model("llama", tie_word_embeddings=True)
    units = PruningUnits.of(model)
    assert error(tmp_path, model, units, patterns(units)["some"]) < TOLERANCE


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision(dtype, digits, tmp_path):
    """llama.cpp also rounds what it multiplies the matrices with."""
    model = small_model("qwen2", getattr(torch, dtype)).to(torch.float32)
    units = PruningUnits.of(model)
    found = error(tmp_path, model, units, patterns(units)["some"], dtype=dtype)
    assert found < 20 * 2**-digits


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_tokenizer(),
        byte_tokenizer(
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
        ),
        byte_tokenizer(split(WORDS % r"\p{N}{1,3}"), ignore_merges=True),
        byte_tokenizer(split(WORDS % r"\p{N}")),
        sentencepiece_tokenizer(),
    ],
    ids=["gpt-2", "smollm", "llama-bpe", "qwen2", "sentencepiece"],
)
def test_tokens_are_those_of_the_tokenizer(tokenizer, tmp_path):
    model = small_model("llama")
    units = PruningUnits.of(model)
    same_tokens(exported(tmp_path, model, units, units.ones(), tokenizer), tokenizer)


def same_tokens(folder: Path, tokenizer, texts: list[str] = TEXTS) -> None:
    model = load(folder, vocab_only=True)
    for text in texts:
        assert model.tokenize(text.encode(), special=True) == tokenizer(text)["input_ids"], text


@pytest.mark.parametrize("name", ["some", "layer 0 and some", "the last layer and some"])
def test_the_text_of_the_built_in_model(name, tmp_path):
    model, tokenizer = load_model(ModelConfig("builtin", device="cpu", dtype="float32"))
    same_text(tmp_path, model, tokenizer, name, "def main():\n")


@pytest.mark.parametrize("name", ["some", "layer 0 and some", "the last layer and some"])
def test_the_text_of_a_real_model(name, assets, tmp_path):
    folder = assets / "models" / "stories260K"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    same_text(tmp_path, model, AutoTokenizer.from_pretrained(folder), name, "Once upon a time")


def same_text(folder: Path, model, tokenizer, name: str, prompt: str) -> None:
    """The same tokens and, greedily, the same text, from a model with and without a mask."""
    units = PruningUnits.of(model)
    for i, mask in enumerate([units.ones(), patterns(units)[name]]):
        path = exported(folder / str(i), model, units, mask, tokenizer)
        same_tokens(path, tokenizer)
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        pruned = prune(model, units, mask)
        text = pruned.generate(ids, max_new_tokens=60, do_sample=False)[0]
        expected = tokenizer.decode(text, skip_special_tokens=True)
        answer = load(path).create_completion(prompt, max_tokens=60, temperature=0)
        assert len(expected) > len(prompt) + 20
        assert prompt + answer["choices"][0]["text"] == expected
