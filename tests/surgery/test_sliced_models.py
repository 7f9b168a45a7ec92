"""Sliced models as files, in the hands of transformers and of our commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.command import results
from helpers.finished_run import assert_close
from helpers.pruned import logits_of, parameters, sliced
from helpers.tiny import letters_tokenizer, tiny_model, tokens
from pgprune import PruningError
from pgprune.data.stream import DataConfig, evaluation_windows
from pgprune.experiments.baseline import Baseline, BaselineSettings
from pgprune.export.export import ExportConfig, export, parameters_in
from pgprune.losses.windows import model_perplexity
from pgprune.methods.common.base import MethodConfig
from pgprune.models.load import ModelConfig, load_model
from pgprune.runs.any_model import load_any
from pgprune.runs.finished import FinishedRun
from pgprune.runs.run import Run
from pgprune.runs.settings import RunConfig
from pgprune.surgery.slice_model import slice_model
from pgprune.surgery.stream_slices import Slices


def sliced_model(model) -> torch.nn.Module:
    return slice_model(model, sliced(model))


def test_slices_are_saved_and_read(tmp_path):
    slices = Slices(torch.randn(6, 32, 8))
    slices.save(tmp_path)
    assert torch.equal(Slices.load(tmp_path).rotations, slices.rotations)
    record = json.loads((tmp_path / "slices.json").read_text())
    assert record["width"] == 8 and record["dense_width"] == 32
    save_file({"rotations": slices.rotations[:2]}, tmp_path / "slices.safetensors")
    with pytest.raises(PruningError, match=r"shape \(2, 32, 8\), slices.json says \(6, 32, 8\)"):
        Slices.load(tmp_path)
    (tmp_path / "slices.json").unlink()
    with pytest.raises(PruningError, match="cannot be read"):
        Slices.load(tmp_path)


def test_text_is_generated_with_a_cache_as_without(model):
    small = sliced_model(model)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    attention = torch.ones_like(tokens())
    ways = [{"use_cache": False}, {}, {"cache_implementation": "static"}]
    texts = [
        small.generate(tokens(), attention_mask=attention, **options, **way).tolist()
        for way in ways
    ]
    assert texts[0] == texts[1] == texts[2]


def test_tools_can_look_inside(model):
    small = sliced_model(model)
    small.set_attn_implementation("eager")
    output = small(tokens(), output_hidden_states=True, output_attentions=True)
    assert [h.shape[-1] for h in output.hidden_states] == [16, 16, 16, 32]
    assert len(output.attentions) == 3
    small.train()
    small(tokens(), labels=tokens()).loss.backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.fixture(scope="module")
def run(arguments, tmp_path_factory) -> Path:
    """A run of the method on a tiny model."""
    path = tmp_path_factory.mktemp("runs") / "sliced"
    names = ("calibration", "evaluation", "batch_size", "sequence_length")
    settings = BaselineSettings(
        method=MethodConfig(method="slicegpt", method_samples=8),
        run=RunConfig(output=str(path)),
        model=ModelConfig(model=arguments["model"], dtype="float64"),
        data=DataConfig(**{name: arguments[name] for name in names}, evaluation_windows=4),
    )
    Baseline(settings).run(["python"])
    return path


def test_a_run_exports_what_it_has_evaluated(run, tmp_path):
    found = results(run)
    folder = export(FinishedRun.open(run), ExportConfig(output=str(tmp_path / "hf")))
    config = ModelConfig(model=str(folder), device="cpu", dtype="float64")
    loaded, tokenizer = load_model(config, pruned=True)
    assert parameters(loaded) == parameters_in(folder) == found["parameters"]["pruned"]
    assert found["prune_rate"]["achieved"] >= found["prune_rate"]["requested"]
    data = Run.open(run).config("data", DataConfig)
    for name, windows in evaluation_windows(data, tokenizer).items():
        expected = found["perplexity"]["pruned"][name]
        assert model_perplexity(loaded, windows) == pytest.approx(expected, rel=1e-5)
    assert "instead of 32; all heads" in (folder / "README.md").read_text()
    assert (folder / "modeling_slicegpt.py").is_file()


def test_a_run_can_be_loaded_and_not_exported_otherwise(run):
    small = load_any(str(run), device="cpu").model
    assert small.config.slice_width == Slices.load(run).width
    for other in ({"format": "masked"}, {"portable": True}, {"uniform": True}, {"round_to": 8}):
        with pytest.raises(PruningError, match="only --format hf can hold"):
            export(FinishedRun.open(run), ExportConfig(**other))


WITHOUT_PGPRUNE = """
import sys
sys.modules["pgprune"] = None  # importing it fails
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM
for folder in sys.argv[1:]:
    options = {"dtype": torch.float64, "trust_remote_code": True}
    expected = load_file(folder + "/../expected.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    assert (model(expected["ids"]).logits - expected["logits"]).abs().max() < 1e-12
    hidden = AutoModel.from_pretrained(folder, **options)(expected["ids"]).last_hidden_state
    assert hidden.shape == (2, 9, 32)
"""


def test_an_environment_without_pgprune_loads_it(tmp_path, monkeypatch):
    folders = []
    for family in ("qwen3", "opt"):
        small, folder = sliced_model(tiny_model(family)), tmp_path / family / "hf"
        small.save_pretrained(folder)
        expected = {"ids": tokens(), "logits": logits_of(small)}
        save_file(expected, folder.parent / "expected.safetensors")
        folders.append(str(folder))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    command = [sys.executable, "-I", "-c", WITHOUT_PGPRUNE, *folders]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_load_model_takes_it_for_a_pruned_model(tmp_path):
    small = sliced_model(tiny_model("opt"))
    small.save_pretrained(tmp_path)
    letters_tokenizer().save_pretrained(tmp_path)
    config = ModelConfig(model=str(tmp_path), device="cpu", dtype="float64")
    loaded, _ = load_model(config, pruned=True)
    assert_close(logits_of(loaded), logits_of(small), atol=1e-12)
    with pytest.raises(PruningError, match="already pruned"):
        load_model(config)
