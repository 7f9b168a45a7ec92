"""Runs with a repair, from the command that trains to the model that is shipped."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.command import Crash, as_options, assert_same_run, command, results, train
from helpers.finished_run import numbers
from helpers.tiny import tiny_arguments, tokens
from pgprune import PruningError
from pgprune.agents.training.settings import Settings
from pgprune.data.stream import DataConfig, evaluation_windows
from pgprune.export.export import ExportConfig, export
from pgprune.models.load import ModelConfig, load_model
from pgprune.repair.config import RepairConfig
from pgprune.repair.repair import Repair
from pgprune.runs.any_model import load_any
from pgprune.runs.files import RunFile
from pgprune.runs.finished import FinishedRun
from pgprune.runs.run import Run


@pytest.fixture(scope="module")
def repaired_options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a short run on a model without biases."""
    folder = tmp_path_factory.mktemp("mistral")
    arguments: dict[str, Any] = tiny_arguments(folder, "mistral", likely=True)
    arguments |= {"evaluation_windows": 8, "init_samples": 16, "checkpoint_every": 7}
    arguments |= {"total_timesteps": 2}
    return as_options(arguments)


@pytest.fixture(scope="module")
def runs(repaired_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run for each repair."""
    folder = tmp_path_factory.mktemp("runs")
    for how in ("none", "bias", "least-squares"):
        options = [*repaired_options, f"--repair={how}", f"--output={folder / how}", "--quiet"]
        assert train(*options) == 0
    return {path.name: path for path in folder.iterdir()}


def same_repair(first: Path, second: Path) -> bool:
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def measured(run: Path, source: Path) -> float:
    """Perplexity of a model on the run's evaluation text."""
    loaded = load_any(str(source), dtype="float64")
    data = Run.open(run).config("data", DataConfig)
    (windows,) = evaluation_windows(data, loaded.tokenizer).values()
    with torch.no_grad():
        loss = sum(float(loaded.model(ids[None], labels=ids[None]).loss) for ids in windows)
    return math.exp(loss / len(windows))


def test_the_repair_changes_what_is_shipped_and_not_what_is_learned(runs):
    plain = results(runs["none"])
    masks = load_file(runs["none"] / "mask.safetensors")
    assert plain["perplexity"]["masked"] == plain["perplexity"]["pruned"]
    assert not (runs["none"] / RunFile.REPAIR).exists()
    for how in ("bias", "least-squares"):
        found = results(runs[how])
        assert found.keys() == plain.keys()
        assert found["perplexity"].keys() == plain["perplexity"].keys()
        assert found["perplexity"]["masked"] == plain["perplexity"]["masked"]
        assert found["perplexity"]["pruned"] != found["perplexity"]["masked"]
        others = load_file(runs[how] / "mask.safetensors")
        assert all(torch.equal(masks[name], others[name]) for name in masks)
        repair = Repair.load(runs[how] / RunFile.REPAIR)
        assert bool(repair.weights) == (how == "least-squares")
        added = sum(len(bias) for bias in repair.biases.values())
        assert found["parameters"]["pruned"] == plain["parameters"]["pruned"] + added
        assert found["parameters"]["masked"] == plain["parameters"]["pruned"]
        assert found["parameters"]["dense"] == plain["parameters"]["dense"]
        assert found["tokens"] > plain["tokens"]


@pytest.mark.parametrize("how", ["bias", "least-squares"])
def test_what_is_shipped_is_what_was_measured(runs, how, tmp_path):
    run = runs[how]
    folder = export(FinishedRun.open(run), ExportConfig(output=str(tmp_path / "hf")))
    expected = results(run)["perplexity"]["pruned"]["text"]
    assert measured(run, folder) == pytest.approx(expected)
    assert measured(run, run) == pytest.approx(expected)
    assert numbers(folder) == results(run)["parameters"]["pruned"]


def test_the_sample_is_of_the_repaired_model(runs):
    samples = {how: results(run)["samples"] for how, run in runs.items()}
    for mine, other in zip(samples["none"], samples["least-squares"], strict=True):
        assert mine["dense"] == other["dense"]
    loaded = load_any(str(runs["least-squares"]), dtype="float64")
    for sample in samples["least-squares"]:
        ids = torch.tensor([loaded.tokenizer(sample["prompt"].replace(" ", ""))["input_ids"]])
        text = loaded.model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)[0]
        new = loaded.tokenizer.decode(text[ids.shape[1] :])
        assert sample["pruned"].strip().startswith(new.strip())


def test_the_table_has_a_row_for_each(repaired_options, tmp_path, capsys):
    options = [*repaired_options, f"--output={tmp_path / 'run'}"]
    assert train(*options, "--repair=bias", "--export=hf") == 0
    shown = capsys.readouterr().out
    assert "learned mask, as shipped" in shown
    found = results(tmp_path / "run")
    for row in ("masked", "pruned"):
        assert f"{found['perplexity'][row]['text']:,.3f}" in shown
        assert f"{found['parameters'][row]:,}" in shown
    assert numbers(tmp_path / "run" / "hf") == found["parameters"]["pruned"]


def test_a_run_killed_before_its_results_has_the_same_repair_when_it_is_resumed(
    runs, repaired_options, tmp_path, monkeypatch
):
    undisturbed, run = runs["least-squares"], tmp_path / "run"

    def crash(*arguments: Any) -> None:
        raise Crash

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Run, "write_results", crash)
        train(*repaired_options, "--repair=least-squares", f"--output={run}", "--quiet")
    assert train(f"--resume={run}", "--quiet") == 0
    assert_same_run(undisturbed, run)
    assert same_repair(undisturbed / RunFile.REPAIR, run / RunFile.REPAIR)


def test_a_repair_on_its_own_windows_and_damping_is_the_same_when_it_is_resumed(
    runs, repaired_options, tmp_path, monkeypatch
):
    words = ["--repair=least-squares", "--repair-samples=40", "--repair-damping=auto", "--quiet"]
    assert train(*repaired_options, *words, f"--output={tmp_path / 'undisturbed'}") == 0
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Run, "write_mask", lambda *_: (_ for _ in ()).throw(Crash))
        train(*repaired_options, *words, f"--output={tmp_path / 'run'}")
    assert train(f"--resume={tmp_path / 'run'}", "--quiet") == 0
    repairs = [path / RunFile.REPAIR for path in (tmp_path / "undisturbed", tmp_path / "run")]
    assert same_repair(*repairs)
    assert not same_repair(repairs[0], runs["least-squares"] / RunFile.REPAIR)
    settings = Settings.from_run(Run.open(tmp_path / "run"))
    assert settings.repair == RepairConfig("least-squares", "auto", 40)
    assert FinishedRun.open(tmp_path / "run").repair_windows == 40
    held_out = results(tmp_path / "run")["repair"]["held_out_loss"]
    assert held_out["repaired"] < held_out["masked"]
    assert "damping by held-out text |" in card_of(tmp_path / "run", tmp_path / "hf")


def card_of(run: Path, output: Path, **options: Any) -> str:
    """The model card of a run's export."""
    return (
        export(FinishedRun.open(run), ExportConfig(output=str(output), **options)) / "README.md"
    ).read_text()


def test_a_repair_that_does_harm_is_not_shipped(runs, repaired_options, tmp_path, heard):
    run, harm = tmp_path / "run", "none; least-squares, damping 0.001 does harm on held-out text"
    few = ["--repair=least-squares", "--repair-damping=0.001", "--repair-samples=1"]
    assert train(*repaired_options, *few, f"--output={run}") == 0
    found = results(run)
    assert found["repair"]["asked"] == "least-squares" and found["repair"]["shipped"] is False
    losses = found["repair"]["held_out_loss"]
    assert losses["repaired"] > losses["masked"]
    assert found["perplexity"] == results(runs["none"])["perplexity"]
    assert not (run / RunFile.REPAIR).exists()
    assert f"| repair | {harm} |" in card_of(run, tmp_path / "hf")
    words = {"repair": "least-squares", "repair_damping": 0.001, "repair_samples": 1}
    card = card_of(runs["none"], tmp_path / "again", **words)
    assert f"| repair | {harm} |" in card
    refusal, note = heard.notes[-2:]
    assert refusal.startswith("the mask ships without repair least-squares, which does harm on")
    assert note.startswith("Not repaired: least-squares, damping 0.001 does harm on held-out")
    assert note in card


def test_a_run_of_an_earlier_version_goes_on_and_is_exported(runs, tmp_path):
    run = Path(shutil.copytree(runs["none"], tmp_path / "run"))
    sections = yaml.safe_load((run / "config.yaml").read_text())
    del sections["repair"], sections["agent"]["reward"]
    (run / "config.yaml").write_text(yaml.safe_dump(sections))
    assert Settings.from_run(Run.open(run)).repair == RepairConfig()
    found = results(run)
    del found["parameters"]["masked"], found["manifest"]
    (run / "manifest.json").unlink()
    (run / "results.json").write_text(json.dumps(found))
    folder = export(FinishedRun.open(run), ExportConfig())
    assert numbers(folder) == found["parameters"]["pruned"]
    assert "| repair | none |" in (folder / "README.md").read_text()
    config = ExportConfig(repair="bias", output=str(tmp_path / "bias"))
    again = export(FinishedRun.open(run), config)
    assert "| repair | bias |" in (again / "README.md").read_text()


def test_a_repair_cannot_be_changed_on_resuming(runs):
    with pytest.raises(PruningError, match="so --repair has no effect"):
        train(f"--resume={runs['none']}", "--repair=bias")


def test_a_format_without_biases_is_refused_before_a_run_exists(repaired_options, tmp_path):
    options = [*repaired_options, f"--output={tmp_path / 'run'}", "--repair=bias"]
    with pytest.raises(PruningError, match="no place; use --repair least-squares"):
        train(*options, "--export=masked")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["bias", "least-squares"])
def test_a_repair_made_on_export_is_the_one_that_the_run_would_have_made(
    runs, how, tmp_path, heard
):
    config = ExportConfig(repair=how, output=str(tmp_path / "new"))
    new = export(FinishedRun.open(runs["none"]), config)
    old = export(FinishedRun.open(runs[how]), ExportConfig(output=str(tmp_path / "old")))
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (new, old))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    (note,) = heard.notes
    after = results(runs[how])["perplexity"]["pruned"]["text"]
    before = results(runs["none"])["perplexity"]["pruned"]["text"]
    words = {"bias": "bias", "least-squares": "least-squares, damping 0.01"}[how]
    assert note == (
        f"Repaired for this export, on the run's calibration text: {words}. Perplexity: "
        f"{after:.2f} on text (as the run has left it: {before:.2f})."
    )
    card = (new / "README.md").read_text()
    assert note in card and f"| this model | {after:.2f} ± " in card
    assert f"{numbers(new):,} of " in card and f"| repair | {words} |" in card


def test_the_repair_of_a_run_can_be_left_out(runs, tmp_path, heard):
    config = ExportConfig(repair="none", output=str(tmp_path / "new"))
    new = export(FinishedRun.open(runs["bias"]), config)
    old = export(FinishedRun.open(runs["none"]), ExportConfig(output=str(tmp_path / "old")))
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (new, old))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert heard.notes[0].startswith("Without the run's repair. Perplexity: ")


def test_damping_is_followed(runs, tmp_path):
    folders = [
        export(
            FinishedRun.open(runs["none"]),
            ExportConfig(repair="least-squares", repair_damping=damping, output=str(tmp_path / n)),
        )
        for n, damping in (("weak", 0.01), ("strong", 100.0))
    ]
    weak, strong = (load_file(folder / "model.safetensors") for folder in folders)
    assert any(not torch.equal(weak[name], strong[name]) for name in weak)
    assert "damping 100 |" in (folders[1] / "README.md").read_text()


def test_another_mask_gets_a_repair_of_its_own(runs, tmp_path, heard):
    run = runs["least-squares"]
    config = ExportConfig(uniform=True, output=str(tmp_path / "uniform"))
    folder = export(FinishedRun.open(run), config)
    of_the_mask, of_the_repair = heard.notes
    assert "This is not the run's own mask" in of_the_mask
    value = measured(run, folder)
    assert of_the_repair.startswith(
        "Repaired for this export, on the run's calibration text: least-squares, damping 0.01. "
        f"Perplexity: {value:.2f} on text (as the run has left it: "
    )
    card = (folder / "README.md").read_text()
    assert of_the_repair in card and f"| this model | {value:.2f} ± " in card
    assert json.loads((folder / "config.json").read_text())["model_type"] == "mistral"
    plain = ExportConfig(uniform=True, repair="none", output=str(tmp_path / "plain"))
    assert measured(run, export(FinishedRun.open(run), plain)) != pytest.approx(value)


def test_a_bias_repair_of_another_mask(runs, tmp_path):
    run = runs["bias"]
    config = ExportConfig(round_to=2, output=str(tmp_path / "rounded"))
    folder = export(FinishedRun.open(run), config)
    card = (folder / "README.md").read_text()
    assert f"| this model | {measured(run, folder):.2f} ± " in card
    assert f"{numbers(folder):,} of {results(run)['parameters']['dense']:,} parameters" in card


def test_the_command(runs, tmp_path, capsys):
    output = tmp_path / "exported"
    command("export", runs["none"], "--repair=least-squares", f"--output={output}")
    assert "Repaired for this export" in capsys.readouterr().out
    model, _ = load_model(ModelConfig(str(output), dtype="float64"), pruned=True)
    assert bool(model(tokens() % 26).logits.isfinite().all())
