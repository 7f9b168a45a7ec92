"""A finetuned model in any format: its weights are put back into the run that it came from."""

from pathlib import Path

import pytest
import torch

from helpers.finished_run import assert_close, finished_run, run_of_pattern
from helpers.gguf_models import gguf_run, small_model
from helpers.masks import patterns
from helpers.pruned import equal_layers
from helpers.tiny import tiny_model, tokens
from pgprune import PruningError
from pgprune.export.export import ExportConfig, export
from pgprune.masking.units import PruningUnits
from pgprune.runs.any_model import load_any


def finetuned(source: Path, to: Path) -> torch.Tensor:
    """Writes a model with other weights than those of an export; returns its logits."""
    loaded = load_any(str(source), device="cpu", dtype="float64")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).double()
    loaded.model.save_pretrained(to)
    loaded.tokenizer.save_pretrained(to)
    return loaded.model(tokens()).logits


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt", "qwen3"])
@pytest.mark.parametrize(
    ("pattern", "granularity"),
    [("layer 0 and some", "heads+channels"), ("some", "values+channels"), ("some", "blocks")],
)
def test_every_format_has_the_finetuned_weights(family, pattern, granularity, tmp_path):
    run = run_of_pattern(tmp_path, pattern, tiny_model(family), granularity)
    expected = finetuned(export(run, ExportConfig()), tmp_path / "finetuned")
    for form in ("hf", "masked"):
        config = ExportConfig(
            format=form, output=f"{tmp_path}/{form}", weights=f"{tmp_path}/finetuned"
        )
        written = export(run, config)
        loaded = load_any(str(written), device="cpu", dtype="float64")
        assert_close(loaded.model(tokens()).logits, expected)
        assert "was finetuned" in (written / "README.md").read_text()


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "glm4_moe"])
def test_weights_of_fewer_and_narrower_experts_return_to_their_places(family, tmp_path):
    model = tiny_model(family)
    units = PruningUnits.of(model, "experts+channels")
    run = finished_run(tmp_path, model, units, equal_layers(units, experts=3, channels=4))
    expected = finetuned(export(run, ExportConfig()), tmp_path / "finetuned")
    written = export(run, ExportConfig(output=f"{tmp_path}/hf", weights=f"{tmp_path}/finetuned"))
    loaded = load_any(str(written), device="cpu", dtype="float64")
    assert_close(loaded.model(tokens()).logits, expected)


@pytest.mark.parametrize("option", [{"uniform": True}, {"round_to": 2}, {"repair": "none"}])
def test_options_that_change_weights_again_are_refused(option, tmp_path):
    run = run_of_pattern(tmp_path, "some")
    with pytest.raises(PruningError, match="--weights DIR keeps the run's mask"):
        export(run, ExportConfig(weights="DIR", **option))


def test_a_model_of_another_run_is_refused(tmp_path):
    run = run_of_pattern(tmp_path, "some")
    model = tmp_path / "model"  # the dense one
    with pytest.raises(PruningError, match="is not one that the run"):
        export(run, ExportConfig(weights=str(model)))
    assert not (run.path / "hf").exists()


def test_a_llama_cpp_file_has_the_finetuned_weights(tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs pip install 'pgprune[gguf]'")
    model = small_model("llama")
    units = PruningUnits.of(model)
    run = gguf_run(tmp_path, model, units, patterns(units)["some"])
    finetuned(export(run, ExportConfig()), tmp_path / "finetuned")
    config = ExportConfig(format="gguf", weights=str(tmp_path / "finetuned"))
    file = gguf.GGUFReader(export(run, config) / "model.gguf")
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in file.tensors}
    expected = load_any(str(tmp_path / "finetuned"), device="cpu", dtype="float32").model.model
    assert_close(found["token_embd.weight"], expected.embed_tokens.weight)
    for index, layer in enumerate(expected.layers):
        assert_close(found[f"blk.{index}.ffn_down.weight"], layer.mlp.down_proj.weight)
        assert_close(found[f"blk.{index}.ffn_up.weight"], layer.mlp.up_proj.weight)
