"""A finetuned model in any format: its weights are put back into the run that it came from."""

from pathlib import Path

import pytest
import torch

from helpers.finished_run import assert_close, run_of_pattern
from helpers.tiny import tiny_model, tokens
from pgprune import PruningError
from pgprune.export.export import ExportConfig, export
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
