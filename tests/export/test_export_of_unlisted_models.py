"""Runs of ``--family auto``: what is read later finds and proves the family again."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.finished_run import finished_run
from helpers.tiny import tokens
from helpers.unlisted import proven, unlisted_model
from pgprune import PruningError
from pgprune.export.export import ExportConfig, export
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models import families
from pgprune.models.load import ModelConfig, load_model
from pgprune.runs.any_model import load_any


@pytest.fixture(autouse=True)
def nothing_found_before(monkeypatch):
    monkeypatch.setattr(families, "_FOUND", {})


def run_of(folder, kept: int, monkeypatch):
    """A run of starcoder2 that prunes the first channels of each layer; its masked logits."""
    with monkeypatch.context() as found:
        found.setattr(families, "_FOUND", {"starcoder2": proven("starcoder2")})
        model = unlisted_model("starcoder2")
        units = PruningUnits.of(model, "channels")
        mask = units.ones()
        mask[: 24 - kept] = mask[24:34] = mask[48:58] = 0
        logits = MaskedLM(model, units).logits(mask[None], tokens())[0]
        return finished_run(folder, model, units, mask, family="auto"), logits


def test_the_export_is_a_stock_model_and_is_measured(tmp_path, monkeypatch):
    run, expected = run_of(tmp_path, 14, monkeypatch)
    directory = export(run, ExportConfig())
    assert "auto_map" not in json.loads((directory / "config.json").read_text())
    for loaded in (AutoModelForCausalLM.from_pretrained(directory), load_any(str(directory)).model):
        error = (loaded.double()(tokens()).logits.detach() - expected).abs().max()
        assert float(error) <= 1e-4  # the second is float32
    assert load_any(str(run.path)).model.config.intermediate_size == 14
    assert load_any(str(tmp_path / "model")).model.config.intermediate_size == 24


def test_layers_that_differ_need_the_code_that_travels(tmp_path, monkeypatch):
    run, expected = run_of(tmp_path, 20, monkeypatch)
    directory = export(run, ExportConfig())
    assert (directory / "modeling_pgprune.py").exists()
    loaded = load_any(str(directory), dtype="float64").model
    assert [layer.mlp.c_proj.in_features for layer in loaded.model.layers] == [20, 14, 14]
    torch.testing.assert_close(loaded(tokens()).logits, expected, rtol=0, atol=1e-10)
    masked = export(run, ExportConfig(format="masked"))
    loaded = AutoModelForCausalLM.from_pretrained(masked, dtype=torch.float64)
    torch.testing.assert_close(loaded(tokens()).logits, expected, rtol=0, atol=1e-10)


def test_without_the_option_it_is_refused_and_the_option_is_named(tmp_path, monkeypatch):
    run, _ = run_of(tmp_path, 14, monkeypatch)
    with pytest.raises(PruningError, match="'starcoder2', which pgprune does not list; --family a"):
        load_model(ModelConfig(str(tmp_path / "model")))
    with pytest.raises(PruningError, match=r"family must be one of known, auto, llama"):
        ModelConfig(str(tmp_path / "model"), family="guess")
