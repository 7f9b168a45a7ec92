"""Exported models: what plain transformers makes of them, and what cannot be exported."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from helpers.command import as_options, command, refused, train
from helpers.finished_run import assert_close, finished_run, logits, numbers, run_of_pattern
from helpers.masks import patterns
from helpers.pruned import parameters
from helpers.tiny import letters_tokenizer, tiny_arguments, tiny_model, tokens
from pgprune import PruningError
from pgprune.export.export import ExportConfig, export
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.runs.finished import FinishedRun
from pgprune.runs.run import Run
from pgprune.utils.files import new_directory

PATTERNS = [
    ("heads+channels", "some"),
    ("heads+channels", "all heads of layer 1"),
    ("heads+channels", "layer 0 and some"),
    ("heads+channels", "the last layer and some"),
    ("values+channels", "the first kv head and some"),
]


@pytest.fixture
def run(tmp_path) -> Run:
    return run_of_pattern(tmp_path, "some")


@pytest.mark.parametrize(("granularity", "name"), PATTERNS)
def test_the_round_trip(model, granularity, name, tmp_path):
    units = PruningUnits.of(model, granularity)
    mask = patterns(units)[name]
    expected = MaskedLM(model, units).logits(mask[None], tokens())[0]
    run = finished_run(tmp_path, model, units, mask)
    directory = export(run, ExportConfig())
    assert directory == run.path / "hf"
    assert_close(logits(directory), expected)
    assert_close(logits(directory, attn_implementation="eager"), expected, 1e-4)
    assert numbers(directory) == parameters(model) - units.pruned_parameters(mask)
    results = json.loads((run.path / "results.json").read_text())
    assert numbers(directory) == results["parameters"]["pruned"]
    files = {path.name for path in directory.iterdir()}
    assert files == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_pgprune.py",
        "family_classes.py",
        "fitted_layers.py",
        "fused.py",
        "layer_parts.py",
        "classification.py",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "manifest.json",
    }
    names = load_file(directory / "model.safetensors").keys()
    stock = {name.replace("_proj.linear.", "_proj.") for name in names}
    assert stock <= model.state_dict().keys()
    assert (stock == names) == (granularity == "heads+channels")


@pytest.mark.parametrize("granularity", ["layers", "blocks"])
def test_pruning_depth_writes_a_stock_model(model, granularity, tmp_path):
    units = PruningUnits.of(model, granularity)
    mask = patterns(units)["layer 0"]
    expected = MaskedLM(model, units).logits(mask[None], tokens())[0]
    run = finished_run(tmp_path, model, units, mask)
    directory = export(run, ExportConfig(output=str(tmp_path / "hf")))
    config = json.loads((directory / "config.json").read_text())
    assert config["model_type"] == model.config.model_type
    assert config["num_hidden_layers"] == 2
    assert not {"auto_map", "per_layer_config"} & config.keys()
    assert not list(directory.glob("*.py"))
    assert "trust_remote_code" not in (directory / "README.md").read_text()
    assert_close(logits(directory, trust_remote_code=False), expected)
    assert numbers(directory) == parameters(model) - units.pruned_parameters(mask)


def test_the_masked_format_has_the_dense_shapes(model, tmp_path):
    units = PruningUnits.of(model)
    mask = patterns(units)["layer 0 and some"]
    expected = MaskedLM(model, units).logits(mask[None], tokens())[0]
    run = finished_run(tmp_path, model, units, mask)
    directory = export(run, ExportConfig(format="masked", output=str(tmp_path / "masked")))
    assert_close(logits(directory, trust_remote_code=False), expected)
    assert numbers(directory) == parameters(model)
    assert "zeros" in (directory / "README.md").read_text()
    assert not list(directory.glob("*.py"))


def test_the_tokenizer_and_the_card_come_with_it(run):
    folder = export(run, ExportConfig())
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"] == [0, 1, 2]
    card = (folder / "README.md").read_text()
    for text in ("12.35", "not finite", "128 tokens", "8 of code", "BOS: none", "26,624"):
        assert text in card, text
    for path in folder.glob("*.json"):
        assert str(run.path.parent) not in path.read_text() + card


def test_half_precision_weights_stay_half_precision(tmp_path):
    run = run_of_pattern(tmp_path, "some", tiny_model("llama", torch.bfloat16), dtype="auto")
    for dtype, expected in {"auto": torch.bfloat16, "float32": torch.float32}.items():
        folder = export(run, ExportConfig(output=str(tmp_path / dtype), dtype=dtype))
        weights = load_file(folder / "model.safetensors").values()
        assert {weight.dtype for weight in weights} == {expected}


def refuses(run: Run, message: str, output: str | None = None) -> None:
    """One clear sentence, and nothing is left behind."""
    before = sorted(run.path.parent.rglob("*"))
    with pytest.raises(PruningError, match=message) as error:
        export(FinishedRun.open(run.path), ExportConfig(output=output))
    assert "\n" not in str(error.value)
    assert sorted(run.path.parent.rglob("*")) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_an_output_that_exists_or_cannot_be_made(run):
    refuses(run, "cannot make a directory", output=str(run.path / "config.yaml" / "hf"))
    (run.path / "hf").mkdir()
    refuses(run, "hf exists; choose another --output")


def test_results_that_are_damaged_or_missing(run):
    cut(run.path / "results.json")
    refuses(run, "results.json is damaged")
    (run.path / "results.json").unlink()
    refuses(run, "no results yet; .* --resume")


def test_a_mask_that_is_missing_or_damaged(run):
    path = run.path / "mask.safetensors"
    whole = load_file(path)["mask"].clone()  # else it would be cut with the file
    cut(path)
    refuses(run, "mask.safetensors is damaged")
    save_file({"mask": whole}, path)
    run.write_results(run.results)
    refuses(run, "damaged .it lacks 'granularity'")
    run.write_mask({"mask": whole * 2}, PruningUnits.of(tiny_model("llama")).describe())
    run.write_results(run.results)
    refuses(run, "other values than 0 and 1")
    path.unlink()
    refuses(run, "mask.safetensors is missing")


def test_a_mask_of_another_model(run):
    model = tiny_model("llama", intermediate_size=16)
    model.save_pretrained(run.path.parent / "model")
    refuses(run, r"is of another model: it is over 42 units .* has 54 of")


def test_a_model_with_other_weights(run):
    model = tiny_model("llama")
    model.lm_head.weight.data += 1
    model.save_pretrained(run.path.parent / "model")
    refuses(run, "has other weights than when the run")


def test_a_model_without_its_tokenizer(run):
    for path in (run.path.parent / "model").glob("tokenizer*"):
        path.unlink()
    refuses(run, "the tokenizer of the model .* cannot be read")


def test_a_model_that_is_truncated_or_gone(run):
    weights = run.path.parent / "model" / "model.safetensors"
    cut(weights)
    refuses(run, "truncated or corrupted")
    shutil.rmtree(weights.parent)
    refuses(run, "does not exist")


def test_a_disk_that_is_full(run, monkeypatch):
    def save_pretrained(self, directory, **options):
        (Path(directory) / "tokenizer.json").write_text("half")
        raise OSError(28, "No space left on device")

    tokenizer = type(letters_tokenizer())
    monkeypatch.setattr(tokenizer, "save_pretrained", save_pretrained)
    refuses(run, "cannot write .*hf: no space left on device; free some space")


def test_a_new_directory_appears_at_once_or_not_at_all(tmp_path):
    path = tmp_path / "new"
    with new_directory(path) as temporary:
        (temporary / "folder").mkdir()
        (temporary / "folder" / "file").write_text("text")
        assert not path.exists()
    assert [p.name for p in tmp_path.rglob("*")] == ["new", "folder", "file"]
    with pytest.raises(FileExistsError), new_directory(path) as temporary:
        (temporary / "other").touch()
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "other"):
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.rglob("*")] == ["new", "folder", "file"]


def test_a_run_of_the_training_command(tmp_path):
    """The real config.yaml, mask and results.json, not ours."""
    arguments = tiny_arguments(tmp_path) | {"evaluation_windows": 8, "init_samples": 8}
    arguments |= {"total_timesteps": 1, "output": str(tmp_path / "run")}
    assert train(*as_options(arguments), "--quiet") == 0
    run = FinishedRun.open(tmp_path / "run")
    directory = export(run, ExportConfig())
    results = json.loads((run.path / "results.json").read_text())
    assert numbers(directory) == results["parameters"]["pruned"]
    assert f"{results['perplexity']['pruned']['text']:.2f}" in (directory / "README.md").read_text()


def test_the_command(run, capsys):
    output = run.path.parent / "exported"
    command("export", run.path, f"--output={output}")
    shown = capsys.readouterr().out
    assert f"exported: {numbers(output):,} parameters" in shown
    assert f"AutoModelForCausalLM.from_pretrained('{output}', trust_remote_code=True)" in shown
    assert str(output / "README.md") in shown
    refused("export", run.path, f"--output={output}")
    assert capsys.readouterr().err == f"error: {output} exists; choose another --output\n"
