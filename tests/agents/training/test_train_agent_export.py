"""scripts/train_agent.py as a user runs it: the sample of text and the export at the end."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.command import Crash, assert_same_run, results, train
from helpers.finished_run import assert_close, numbers
from helpers.tiny import letters_tokenizer, tiny_model, tokens
from pgprune.errors import PruningError
from pgprune.export import export
from pgprune.runs.any_model import load_any


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    """A finished run that nothing was exported from."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def exported(run: Path) -> Path:
    """The export, which must be the run's pruned model."""
    expected = load_any(str(run), dtype="float64").model
    found = AutoModelForCausalLM.from_pretrained(run / "hf", dtype=torch.float64)
    with torch.no_grad():
        assert_close(found(tokens()).logits, expected(tokens()).logits)
    assert numbers(run / "hf") == results(run)["parameters"]["pruned"]
    return run / "hf"


def test_a_run_ends_with_a_sample_and_an_export(options, undisturbed, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(*options, f"--output={run}", "--export=hf") == 0
    assert_same_run(undisturbed, run)
    printed = capsys.readouterr().out
    folder = exported(run)
    assert f"the pruned model is in {folder}" in printed
    assert f"benchmark_inference.py {results(run)['model']} {run} " in printed
    samples = results(run)["samples"]
    assert samples == results(undisturbed)["samples"]
    assert [sample["text"] for sample in samples] == ["text", "text"]
    for sample in samples:
        assert sample["prompt"].split()[0] in printed
    assert "dense model" in printed and "pruned model" in printed


def test_nothing_is_exported_unasked(undisturbed):
    assert not [path for path in undisturbed.iterdir() if path.name in export.WRITERS]


def test_an_interrupted_export_is_done_on_resuming(
    options, undisturbed, tmp_path, monkeypatch, capsys
):
    def crash(*arguments: object) -> None:
        raise Crash

    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setitem(export.WRITERS, "hf", crash)
        train(*options, f"--output={run}", "--export=hf")
    assert_same_run(undisturbed, run)
    assert not list(run.glob("*hf*")), "nothing half-written is left"
    before = (run / "results.json").read_bytes()
    assert train(f"--resume={run}") == 0
    folder = exported(run)
    assert f"the pruned model is in {folder}" in capsys.readouterr().out
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert train(f"--resume={run}") == 0
    assert written == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert (run / "results.json").read_bytes() == before


def test_a_finished_run_can_still_be_exported(run):
    assert train(f"--resume={run}", "--export=hf") == 0
    exported(run)


def test_ctrl_c_during_the_export(run, monkeypatch, capsys):
    def ctrl_c(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(export.WRITERS, "hf", ctrl_c)
    assert train(f"--resume={run}", "--export=hf") == 130
    assert f"--resume {run}" in capsys.readouterr().out
    assert not list(run.glob("*hf*"))


def test_a_full_disk_costs_the_export_only(run, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(export.WRITERS, "hf", full)
    says = f"the run {run} is complete, but its export failed: .*no space left.* --export hf"
    with pytest.raises(PruningError, match=says):
        train(f"--resume={run}", "--export=hf")
    assert not list(run.glob("*hf*"))
    assert json.loads((run / "results.json").read_text())["completed"]


def test_an_unknown_format_is_refused_before_a_run_exists(options, tmp_path):
    with pytest.raises(PruningError, match="export.* must be one of hf, masked"):
        train(*options, f"--output={tmp_path / 'run'}", "--export=zip")
    assert not (tmp_path / "run").exists()


def test_a_model_that_gguf_cannot_hold_is_refused_before_a_run_exists(options, tmp_path):
    pytest.importorskip("gguf")
    tiny_model("opt").save_pretrained(tmp_path / "opt")
    letters_tokenizer().save_pretrained(tmp_path / "opt")
    with pytest.raises(PruningError, match="no GGUF file of the family opt"):
        train(
            *options, f"--model={tmp_path / 'opt'}", f"--output={tmp_path / 'run'}", "--export=gguf"
        )
    assert not (tmp_path / "run").exists()
