"""scripts/evaluate.py: perplexity of models and runs, side by side, and where it is kept."""

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.command import command, json_lines, refused, results
from helpers.finished_run import finished_run
from helpers.masks import patterns
from helpers.tiny import letters_tokenizer, tokens
from pgprune import PruningError
from pgprune.data.stream import DataConfig, evaluation_sets
from pgprune.evaluation import evaluate as model_evaluation
from pgprune.evaluation import tables as evaluation_view
from pgprune.export.export import ExportConfig, export
from pgprune.losses import windows as counting
from pgprune.losses.windows import model_perplexity
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.perplexity import perplexity, tokenizer_identity
from pgprune.masking.units import PruningUnits
from pgprune.runs.any_model import load_any
from pgprune.runs.finished import FinishedRun
from pgprune.runs.run import Run
from pgprune.utils.files import append_line

FEW = ("--sequence-length=16", "--evaluation-windows=8", "--dtype=float64", "--device=cpu")


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    """A finished run of the training command, and its own."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


@pytest.fixture
def text(arguments: dict[str, Any]) -> str:
    return f"--evaluation={arguments['evaluation']}"


@pytest.mark.parametrize("name", ["some", "all heads of layer 1", "layer 0 and some"])
def test_a_pruned_model_has_the_perplexity_of_its_mask(model, name, tmp_path):
    units = PruningUnits.of(model)
    mask, windows = patterns(units)[name], tokens(5, 9)
    expected = perplexity(MaskedLM(model, units), mask, windows, batch_size=2)
    run = finished_run(tmp_path, model, units, mask)
    for source in (run.path, export(run, ExportConfig())):
        pruned = load_any(str(source), dtype="float64", device="cpu").model
        assert model_perplexity(pruned, windows, batch_size=2) == pytest.approx(expected, rel=1e-9)


def test_a_dense_model_has_the_perplexity_that_transformers_says(model, monkeypatch):
    windows = tokens(6, 30)
    with torch.no_grad():
        expected = math.exp(model(input_ids=windows, labels=windows).loss)
    assert model_perplexity(model, windows) == pytest.approx(expected)


def test_bytes_are_counted_of_the_documents_that_were_taken(tmp_path):
    text = tmp_path / "text.jsonl"
    documents = ["ab" * 8, "é" * 16] + ["a" * 1000] * 100
    text.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    for windows, ratio in ((1, 1.0), (2, 1.5)):
        config = DataConfig(evaluation=str(text), sequence_length=16, evaluation_windows=windows)
        (found,) = evaluation_sets(config, letters_tokenizer()).values()
        assert found.windows.shape == (windows, 16)
        assert found.bytes_per_token == ratio


def test_tokenizers_are_told_apart(tmp_path):
    tokenizer, other = letters_tokenizer(), letters_tokenizer()
    assert tokenizer_identity(tokenizer) == tokenizer_identity(other)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = type(tokenizer).from_pretrained(tmp_path / "saved")
    identity = tokenizer_identity(again)
    assert identity["name"] == "saved"
    assert identity["vocabulary"] == 26
    assert identity["hash"] == tokenizer_identity(other)["hash"]
    other.add_tokens("th")
    assert tokenizer_identity(other)["hash"] != identity["hash"]


def test_a_run_beside_its_dense_model_and_its_export(run, text, arguments, tmp_path, capsys):
    exported = export(FinishedRun.open(run), ExportConfig(output=str(tmp_path / "exported")))
    files = {path: path.read_bytes() for path in exported.iterdir()}
    sources, kept = [arguments["model"], run, exported], tmp_path / "new" / "all.jsonl"
    assert command("evaluate", *sources, text, *FEW, f"--output={kept}") == 0

    dense, pruned, again = json_lines(kept)
    expected = results(run)
    assert dense["perplexity"] == pytest.approx(expected["perplexity"]["dense"]["text"])
    assert pruned["perplexity"] == pytest.approx(expected["perplexity"]["pruned"]["text"])
    assert again["perplexity"] == pytest.approx(pruned["perplexity"])
    assert dense["parameters"] == expected["parameters"]["dense"]
    assert pruned["parameters"] == again["parameters"] == expected["parameters"]["pruned"]
    assert [record["name"] for record in (dense, pruned, again)] == ["model", "run", "exported"]
    assert json_lines(run / "evaluations.jsonl") == [pruned], "a run keeps its own"
    assert {path: path.read_bytes() for path in exported.iterdir()} == files

    assert pruned["model"] == str(run)
    assert pruned["what"] == "perplexity"
    assert (pruned["windows"], pruned["sequence_length"]) == (8, 16)
    assert pruned["bos"] == "none"
    assert pruned["tokenizer"]["vocabulary"] == 26
    assert pruned["bits_per_byte"] == pytest.approx(math.log2(pruned["perplexity"]))
    assert pruned["text_fingerprint"] == dense["text_fingerprint"]
    assert pruned["versions"]["pgprune"]
    assert pruned["seconds"] > 0

    shown = capsys.readouterr().out
    share = pruned["parameters"] / dense["parameters"]
    for word in ("8 windows of 16 tokens", "BOS: none", "26 tokens", "8 of text", f"{share:.1%}"):
        assert word in shown, word
    assert "bits/byte" not in shown


def test_results_are_added_never_replaced(run, text):
    for _ in range(2):
        assert command("evaluate", run, text, *FEW) == 0
    first, second = json_lines(run / "evaluations.jsonl")
    assert first["perplexity"] == second["perplexity"]
    assert Run.open(run).finished


def test_all_of_the_text(run, text, arguments):
    assert command("evaluate", run, text, *FEW, "--evaluation-windows=0") == 0
    (record,) = json_lines(run / "evaluations.jsonl")
    assert record["windows"] == len(Path(arguments["evaluation"]).read_text()) // 16


def test_different_tokenizers(run, text, arguments, tmp_path, capsys):
    """Their perplexities do not compare; with a token a byte, bits per byte say the same."""
    other = Path(shutil.copytree(arguments["model"], tmp_path / "other"))
    tokenizer = letters_tokenizer()
    tokenizer.add_tokens("th")
    tokenizer.save_pretrained(other)
    assert command("evaluate", run, other, text, *FEW) == 0
    shown = capsys.readouterr().out
    assert "different tokenizers" in shown
    assert "\n bits per byte" in shown
    assert "26 tokens" in shown
    assert "27 tokens" in shown


def test_what_was_done_before_ctrl_c_is_kept_and_shown(run, text, arguments, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    load = model_evaluation.load_any
    monkeypatch.setattr(
        model_evaluation,
        "load_any",
        lambda source, **options: load(source, **options) if source == str(run) else interrupted(),
    )
    assert command("evaluate", run, arguments["model"], text, *FEW) == 130
    assert len(json_lines(run / "evaluations.jsonl")) == 1
    assert "perplexity " in capsys.readouterr().out


def test_a_loss_that_is_not_finite_is_stored_as_null(run, text, monkeypatch, capsys):
    infinite = torch.full((1, 8), math.inf)
    monkeypatch.setattr(model_evaluation, "model_losses", lambda model, ids: infinite)
    assert command("evaluate", run, text, *FEW) == 0
    (record,) = json_lines(run / "evaluations.jsonl")
    assert record["perplexity"] is record["bits_per_byte"] is None
    assert "not finite" in capsys.readouterr().out


def test_the_first_model_decides_on_the_windows_of_all(run, arguments, text, monkeypatch):
    monkeypatch.setattr(counting, "FEWEST_WINDOWS", 9)
    monkeypatch.setattr(counting, "STANDARD_ERROR", 1.0)
    few = [word for word in FEW if not word.startswith("--evaluation-windows")]
    out = run / "out.jsonl"
    command("evaluate", arguments["model"], run, text, *few, "--batch-size=5", f"--output={out}")
    first, second = json_lines(out)
    assert first["windows"] == second["windows"] == 10
    assert 0 < first["standard_error"] < first["perplexity"]


def test_a_missing_value_is_shown_as_one(capsys):
    """A table of what an interrupted command has."""
    about = {"tokenizer": {"name": "t", "class": "T", "vocabulary": 2, "hash": "ab"}, "bos": "none"}
    about |= {"what": "perplexity", "windows": 1, "sequence_length": 2, "bits_per_byte": 1.0}
    records = [
        about | {"name": "a", "parameters": 10, "text": "code", "perplexity": 3.0},
        about | {"name": "a", "parameters": 10, "text": "prose", "perplexity": 4.0},
        about | {"name": "b", "parameters": 5, "text": "code", "perplexity": 5.0},
    ]
    evaluation_view.print_tables(records, evaluation_view.Console())
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "10", "100.0%", "3.000", "4.000"] in rows
    assert ["b", "5", "50.0%", "5.000", "-"] in rows


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere/"], "'nowhere/' does not exist"),
        (["--evaluation=absent.txt"], "absent.txt"),
        (["--sequence-length=100"], "run: sequence_length 100 .* context of 24 tokens"),
        (["--evaluation-windows=-1"], "evaluation-windows.*at least 0"),
        (["--batch-size=0"], "batch-size.*at least 1"),
        (["--evaluation=none"], "nothing to evaluate on"),
        (["--device=cuda:99"], "no device 'cuda:99'"),
        (["--output=."], "cannot add lines to ."),
        (["--output=config.yaml/file"], "cannot make a directory in .*config.yaml"),
        (["--dtype=int8"], "dtype"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_mistakes_are_refused_before_any_weights_are_read(words, says, run, text, monkeypatch):
    def read(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(model_evaluation, "load_any", read)
    monkeypatch.chdir(run)
    with pytest.raises(PruningError, match=says) as error:
        command("evaluate", run, text, *FEW, *words)
    assert "\n" not in str(error.value)
    assert not (run / "evaluations.jsonl").exists()


def test_no_model_is_one_line_and_status_2(capsys):
    refused("evaluate")
    assert "MODEL_OR_RUN" in capsys.readouterr().err


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    append_line(path, "first")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk, pytest.raises(OSError, match="space"):
        disk.setattr(os, "fsync", full)
        append_line(path, "second")
    append_line(path, "third")
    assert path.read_text() == "first\nthird\n"
