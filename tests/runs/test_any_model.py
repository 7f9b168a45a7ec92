"""Everything that commands accept as a model, and what they refuse."""

from pathlib import Path

import pytest
import torch

from helpers.finished_run import assert_close, finished_run, run_of_pattern
from helpers.masks import patterns
from helpers.tiny import tiny_model, tokens
from pgprune import PruningError
from pgprune.export.export import ExportConfig, export
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig, load_model
from pgprune.runs.any_model import check_source, load_any, short_name
from pgprune.runs.run import Run
from pgprune.utils.manifest import MANIFEST


@pytest.fixture
def run(tmp_path) -> Run:
    return run_of_pattern(tmp_path, "layer 0 and some")


@pytest.fixture
def exported(run) -> Path:
    return export(run, ExportConfig())


def logits(source: Path | str) -> torch.Tensor:
    return load_any(str(source), dtype="float64", device="cpu").model(tokens()).logits


def refuses(message: str, source: Path | str) -> None:
    """One clear sentence, from the check alone too."""
    for load in (check_source, load_any):
        with pytest.raises(PruningError, match=message) as error:
            load(str(source), device="cpu")
        assert "\n" not in str(error.value)


def test_a_run_and_its_exports_are_the_masked_model(model, tmp_path):
    units = PruningUnits.of(model)
    mask = patterns(units)["layer 0 and some"]
    expected = MaskedLM(model, units).logits(mask[None], tokens())[0]
    run = finished_run(tmp_path, model, units, mask)
    assert_close(logits(run.path), expected)
    for form in ("hf", "masked"):
        assert_close(logits(export(run, ExportConfig(format=form))), expected)


def test_a_dense_model(run):
    model = tiny_model("llama")
    loaded = load_any(str(run.path.parent / "model"), dtype="float64", device="cpu")
    assert_close(loaded.model(tokens()).logits, model(tokens()).logits)
    assert loaded.run is None
    assert loaded.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_model_is_ready_to_evaluate_and_to_generate(run, exported):
    for source in (run.path, exported, run.path.parent / "model"):
        loaded = load_any(str(source), device="cpu")
        assert loaded.source == str(source)
        assert not loaded.model.training
        assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
        assert loaded.model.config.use_cache
        assert loaded.model.generation_config.use_cache
        assert loaded.tokenizer("abc")["input_ids"] == [0, 1, 2]
        assert (loaded.run is not None) == (source == run.path)
        assert loaded.model.dtype == torch.float32, "auto, on the CPU"


def test_options_reach_the_model(run, exported):
    for source in (run.path, exported):
        loaded = load_any(str(source), dtype="bfloat16", device="cpu", attn_implementation="eager")
        assert loaded.model.dtype == torch.bfloat16
        assert loaded.model.config._attn_implementation == "eager"


def test_a_run_of_a_model_that_needs_eager_attention(tmp_path):
    run = run_of_pattern(tmp_path, "layer 0 and some", tiny_model("gemma2"))
    assert load_any(str(run.path)).model.config._attn_implementation == "eager"


def test_the_code_in_an_exported_directory_is_never_run(exported):
    (exported / MANIFEST).unlink()  # as earlier versions left it
    expected = logits(exported)
    (exported / "modeling_pgprune.py").write_text("raise AssertionError('it was run')")
    assert_close(logits(exported), expected)


def test_names_for_tables(run, exported, monkeypatch):
    assert short_name("builtin") == "builtin"
    assert short_name("facebook/opt-125m") == "facebook/opt-125m"
    assert short_name(str(run.path)) == "run"
    assert short_name(str(exported)) == "run/hf"
    assert short_name(str(run.path.parent / "model")) == "model"
    monkeypatch.chdir(exported)
    assert short_name(".") == "run/hf"


def test_the_check_reads_no_weights(run, exported, monkeypatch):
    def read(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr("pgprune.models.load.AutoModelForCausalLM.from_pretrained", read)
    for source in (run.path, exported, run.path.parent / "model"):
        config, tokenizer = check_source(str(source), device="cpu")
        assert config.max_position_embeddings == 64
        assert len(tokenizer) == 26


def test_what_is_pruned_is_not_pruned_again(exported):
    with pytest.raises(PruningError, match="is already pruned; give the dense model"):
        load_model(ModelConfig(str(exported), device="cpu"))


def test_what_is_not_there(tmp_path):
    refuses("does not exist", tmp_path / "absent")


def test_a_run_that_is_not_finished(run):
    (run.path / "results.json").unlink()
    refuses("no results yet", run.path)


def test_a_damaged_mask(run):
    path = run.path / "mask.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refuses("mask.safetensors is damaged", run.path)


def test_a_run_whose_model_is_gone(run):
    (run.path.parent / "model" / "config.json").unlink()
    refuses("has no config.json", run.path)


@pytest.mark.parametrize("left", [0, 100, -1])
def test_truncated_weights(exported, left):
    (exported / MANIFEST).unlink()
    path = exported / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    refuses("truncated or corrupted", exported)


def test_a_pickle(exported):
    (exported / MANIFEST).unlink()  # as earlier versions left it
    (exported / "model.safetensors").rename(exported / "pytorch_model.bin")
    refuses("pickle .* convert it to safetensors", exported)


def test_an_export_without_its_tokenizer(exported):
    (exported / MANIFEST).unlink()  # as earlier versions left it
    for path in exported.glob("tokenizer*"):
        path.unlink()
    refuses("tokenizer .* cannot be read", exported)


def test_a_device_that_is_absent(exported, run):
    for source in (exported, run.path):
        with pytest.raises(PruningError, match="no device 'cuda:99'"):
            check_source(str(source), device="cuda:99")
