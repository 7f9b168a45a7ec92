"""Finetuning that ends early or is refused: what is kept, and what is said."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.command import Crash
from helpers.finetuning_toy import (
    LORA,
    Listener,
    finetune,
    left,
    perplexity,
    same_weights,
    settings,
)
from pgprune import PruningError
from pgprune.data.training_data import TrainingDataConfig
from pgprune.export.export import ExportConfig, export
from pgprune.finetuning.finetune import Finetuning

pytest.importorskip("peft")


def test_ctrl_c_keeps_what_was_learned(run, config, data):
    view = Listener(3, lambda: signal.raise_signal(signal.SIGINT))
    record = finetune(run.path, config, data, view=view)
    assert record["updates"] == {"done": 3, "planned": 10}
    assert not record["completed"]
    assert "It was interrupted, 10 planned." in (run.path / "finetuned/README.md").read_text()
    assert record["perplexity"]["after"]["text"] == pytest.approx(
        perplexity(run.path / "finetuned", config), rel=1e-5
    )
    assert not list(run.path.glob("*.checkpoint.*"))


def test_a_killed_command_resumes_where_it_was(run, config, data):
    def crash():
        raise Crash

    config = replace(config, checkpoint_every=2)
    finetune(run.path, replace(config, output=str(run.path / "whole")), data)
    with pytest.raises(Crash):
        finetune(run.path, config, data, view=Listener(5, crash))
    checkpoint = run.path / "finetuned.checkpoint.safetensors"
    assert checkpoint.exists()
    assert not (run.path / "finetuned").exists()
    with pytest.raises(PruningError, match="left from a command that was killed"):
        finetune(run.path, config, data)
    with pytest.raises(PruningError, match="of a command with another lora; repeat that"):
        finetune(run.path, replace(config, resume=True), data, lora=replace(LORA, rank=2))
    with pytest.raises(PruningError, match="with another seed; repeat"):
        finetune(run.path, replace(config, resume=True, seed=1), data)
    view = Listener()
    record = finetune(run.path, replace(config, resume=True), data, view=view)
    assert "resuming after update 4 of 10" in view.notes
    assert record["updates"]["done"] == 10
    assert same_weights(run.path / "finetuned", run.path / "whole")
    assert not checkpoint.exists()


def test_a_damaged_checkpoint(run, config, data):
    checkpoint = run.path / "finetuned.checkpoint.safetensors"
    checkpoint.write_bytes(b"half of it")
    with pytest.raises(PruningError, match="checkpoint .* is damaged"):
        finetune(run.path, replace(config, resume=True), data)


def test_a_full_disk_leaves_nothing_half_written(run, config, data, monkeypatch):
    def save_pretrained(self, directory, **options):
        (Path(directory) / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    before = left(run.path)
    finetuning = Finetuning(str(run.path), settings(config, data))
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", save_pretrained)
    with pytest.raises(PruningError, match="cannot write .*finetuned: no space left on device"):
        finetuning.run()
    assert left(run.path) == before


def refuses(message, source, config, data) -> None:
    """One clear sentence, before any weights are read."""
    with pytest.raises(PruningError, match=message) as error:
        Finetuning(str(source), settings(config, data))
    assert "\n" not in str(error.value)


def test_an_output_that_exists(run, config, data):
    (run.path / "finetuned").mkdir()
    refuses("finetuned exists; choose another --output", run.path, config, data)
    for output in (".", "", "..", "/"):
        refuses("^[./]+ exists; choose another", run.path, replace(config, output=output), data)


def test_zeros_in_dense_shapes(run, config, data):
    masked = export(run, ExportConfig(format="masked"))
    refuses("holds its mask as zeros, which finetuning would fill", masked, config, data)


def test_a_model_of_which_nothing_says_what_it_knows(run, config):
    model = run.path.parent / "model"
    refuses("calibrated on; give --data", model, config, TrainingDataConfig())


def test_a_hub_id_without_an_output(config, data):
    refuses("no place beside 'org/name'; give --output", "org/name", config, data)


def test_data_that_is_missing(run, config, data):
    refuses("'no.json' does not exist", run.path, config, replace(data, data="no.json"))


def test_windows_beyond_the_context(run, config, data):
    long = replace(config, evaluation_length=65)
    refuses("sequence_length 65 is more than the model's context of 64", run.path, long, data)


def test_a_run_that_has_not_finished(run, config, data):
    (run.path / "mask.safetensors").unlink()
    refuses("mask.safetensors is missing", run.path, config, data)


def test_an_unknown_family(run, config, data):
    settings = run.path.parent / "model" / "config.json"
    settings.write_text(settings.read_text().replace('"llama"', '"bloom"'))
    refuses("family 'bloom', which pgprune does not list", run.path.parent / "model", config, data)
