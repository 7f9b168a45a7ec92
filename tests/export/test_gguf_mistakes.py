"""What cannot be a GGUF file: one clear sentence, and nothing is left behind."""

import sys
from pathlib import Path

import pytest

from helpers.finished_run import run_of_pattern
from helpers.gguf_models import byte_tokenizer, gguf_run, small_model
from helpers.tiny import masked_lm, tiny_model
from pgprune import PruningError
from pgprune.export.export import ExportConfig, check_format, export
from pgprune.masking.units import PruningUnits
from pgprune.runs.run import Run

gguf = pytest.importorskip("gguf", reason="needs pip install 'pgprune[gguf]'")


def refuses(run: Run, message: str, **options) -> None:
    """One clear sentence, and nothing is left behind."""
    before = sorted(run.path.parent.rglob("*"))
    with pytest.raises(PruningError, match=message) as error:
        export(run, ExportConfig(**({"format": "gguf"} | options)))
    assert "\n" not in str(error.value)
    assert sorted(run.path.parent.rglob("*")) == before


def dense_run(folder: Path, family: str, **changes) -> Run:
    model = small_model(family, **changes)
    units = PruningUnits.of(model)
    return gguf_run(folder, model, units, units.ones())


def test_qwen3_with_unequal_layers(tmp_path):
    model = small_model("qwen3")
    units = PruningUnits.of(model)
    mask = units.ones()
    mask[0] = mask[3] = 0
    run = gguf_run(tmp_path, model, units, mask)
    refuses(run, "keep 1 to 2 kv heads and 11 to 12 channels; export with --uniform")


def scaled(kind: str) -> dict:
    return {"rope_parameters": {"rope_theta": 10000.0, "factor": 2.0, "rope_type": kind}}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("opt", {}, "no GGUF file of the family opt.* --format hf"),
        ("qwen3", {"attention_bias": True}, "llama.cpp's qwen3 has no biases"),
        ("granite", {}, "llama.cpp's granite has no biases"),
        ("gemma3_text", {}, "by the root of the size of a head, 10, but the model by that of 12"),
        ("llama", {"hidden_act": "gelu"}, "with silu, but the model has 'gelu'"),
        ("llama", scaled("dynamic"), "rotary .* of the type 'dynamic' cannot be written"),
        ("qwen3", scaled("linear"), "rotary .* of the type 'linear' cannot be written"),
    ],
)
def test_what_llama_cpp_lacks(family, changes, message, tmp_path):
    refuses(dense_run(tmp_path, family, **changes), message)


def test_an_installation_without_the_package(tmp_path, monkeypatch):
    run = dense_run(tmp_path, "llama")
    monkeypatch.setitem(sys.modules, "gguf", None)
    refuses(run, r"needs pip install 'pgprune\[gguf\]'")


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    def full(self, **options):
        raise OSError(28, "No space left on device")

    run = dense_run(tmp_path, "llama")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    refuses(run, "no space left on device; free some space")


def test_a_tokenizer_of_an_unknown_kind_and_portable_layers(tmp_path):
    run = run_of_pattern(tmp_path, "nothing")  # one token a letter
    refuses(run, "it is of the type WordLevel.*--vocab-gguf")
    refuses(run, "no layer of format gguf lacks a block", portable=True)


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path):
    model = tiny_model("llama", vocab_size=100)
    units = PruningUnits.of(model)
    run = gguf_run(tmp_path, model, units, units.ones(), byte_tokenizer())
    refuses(run, "it has token 279, but the model knows 100 tokens only")


def test_a_vocabulary_that_is_lent(tmp_path):
    """The tokenizer cannot be written, but a file of the dense model has it."""
    lender = export(dense_run(tmp_path / "a", "llama"), ExportConfig(format="gguf")) / "model.gguf"
    run = run_of_pattern(tmp_path / "b", "nothing", small_model("llama"), dtype="float32")
    refuses(run, "of the type WordLevel")
    folder = export(run, ExportConfig(format="gguf", vocab_gguf=str(lender)))
    copied, lent = (gguf.GGUFReader(path).fields for path in (folder / "model.gguf", lender))
    assert {key: field.contents() for key, field in copied.items()} == {
        key: field.contents() for key, field in lent.items()
    }


def test_vocabularies_that_do_not_fit_or_are_none(tmp_path):
    lender = export(dense_run(tmp_path / "a", "llama"), ExportConfig(format="gguf")) / "model.gguf"
    run = run_of_pattern(tmp_path / "b", "nothing")
    refuses(run, "has 288 tokens, but the model knows 48", vocab_gguf=str(lender))
    lender.write_bytes(lender.read_bytes()[:20_000])
    refuses(run, "cannot be read .*take a whole GGUF file", vocab_gguf=str(lender))
    refuses(run, "--vocab-gguf is for --format gguf", vocab_gguf=str(lender), format="hf")


def test_layers_that_will_differ_are_refused_for_qwen3_in_gguf():
    model, tokenizer = small_model("qwen3"), byte_tokenizer()
    lm = masked_lm(model)
    with pytest.raises(PruningError, match="--scope global does not give; choose --scope uniform"):
        check_format("gguf", lm, tokenizer)
    check_format("gguf", lm, tokenizer, scope="uniform")
    layers = masked_lm(model, "layers")
    check_format("gguf", layers, tokenizer)
