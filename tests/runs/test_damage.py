"""Damaged files of a run: every reader refuses them in a sentence, or gives the right answer."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.damage import damaged, refused_or_same
from helpers.finished_run import run_of_pattern
from helpers.toy_run import make, train
from pgprune import PruningError
from pgprune.models.load import ModelConfig, load_model
from pgprune.repair.repair import Repair
from pgprune.runs.files import RunFile
from pgprune.runs.finished import FinishedRun
from pgprune.runs.learned_mask import LearnedMask
from pgprune.runs.run import Run
from pgprune.surgery.stream_slices import Slices
from pgprune.utils.files import tensor_bytes
from pgprune.utils.manifest import MANIFEST, Manifest, files_below

READ = [RunFile.CONFIG, RunFile.MASK, RunFile.REPAIR, RunFile.SLICES, RunFile.ROTATIONS]
READ += [RunFile.RESULTS, MANIFEST]


@pytest.fixture
def run(tmp_path) -> FinishedRun:
    """A run with every file that a finished run may have."""
    run = run_of_pattern(tmp_path, "some")
    Repair({(0, "heads"): torch.rand(4, 4)}).save(run.path / RunFile.REPAIR)
    Slices(torch.rand(4, 6, 3)).save(run.path)
    run.write_results(run.results)
    return run


def answer(path: Path) -> tuple[object, ...]:
    """All that an export or an evaluation takes from a run."""
    run = FinishedRun.open(path)
    mask, repair, slices = run.learned_mask(), run.repair(), run.slices()
    assert repair is not None and slices is not None
    weights = repair.weights[0, "heads"]
    tensors = {"mask": mask.mask, "rotations": slices.rotations, "repair": weights}
    described = (mask.granularity, mask.channel_block, mask.parameters)
    return json.dumps([run.sections, run.results]), described, tensor_bytes(tensors)


@pytest.mark.parametrize("times", [14, pytest.param(286, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", READ)
def test_a_damaged_file_of_a_finished_run_is_refused_or_harmless(run, name, times):
    right = answer(run.path)
    refused = sum(
        refused_or_same(lambda: answer(run.path), right) for _ in damaged(run.path / name, times)
    )
    assert refused > 0.9 * times and answer(run.path) == right


@pytest.mark.parametrize("times", [14, pytest.param(280, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [RunFile.CHECKPOINT, RunFile.PROGRESS])
def test_a_damaged_file_of_an_unfinished_run_is_refused_or_harmless(
    name, times, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    train(run := make(), [1, 2, 3])
    right = (run.path / RunFile.PROGRESS).read_bytes()

    def resumed() -> tuple[bytes, float]:
        tensors, _ = Run.open(run.path).load_checkpoint() or ({}, {})
        # Gone with the checkpoint: the run starts over, and says so.
        expected = right if tensors else b""
        assert (run.path / RunFile.PROGRESS).read_bytes() == expected
        return expected, float(tensors["s"].sum()) if tensors else 0.0

    allowed = [(right, 15.0), (b"", 0.0)]
    for how in damaged(run.path / name, times):
        gone = how == "gone" and name == RunFile.CHECKPOINT
        refused_or_same(resumed, allowed[gone])
        (run.path / RunFile.PROGRESS).write_bytes(right)


def test_a_file_that_came_later_is_not_taken(run):
    kept = (run.path / RunFile.REPAIR).rename(run.path / "kept")
    run.write_results(run.results)
    assert FinishedRun.open(run.path).repair() is None
    kept.rename(run.path / RunFile.REPAIR)
    with pytest.raises(PruningError, match="repair.safetensors is not in manifest.json"):
        FinishedRun.open(run.path).repair()


@pytest.mark.parametrize("content", ["{}", "[]", '{"perplexity": 1}', "[" * 10_000, "\0"])
@pytest.mark.parametrize("proven", [True, False])
def test_results_that_are_something_else(run, content, proven):
    (run.path / RunFile.RESULTS).write_text(content)
    if not proven:  # as of earlier versions
        (run.path / MANIFEST).unlink()
    with pytest.raises(PruningError, match="results.json is damaged"):
        _ = Run.open(run.path).finished


@pytest.mark.parametrize("key", ["perplexity", "parameters", "prune_rate", "versions", "seed"])
def test_results_of_an_earlier_version_that_lack_something(run, key):
    (run.path / MANIFEST).unlink()
    left = {name: value for name, value in run.results.items() if name not in (key, "manifest")}
    (run.path / RunFile.RESULTS).write_text(json.dumps(left))
    with pytest.raises(PruningError, match=f"results.json is damaged .it lacks {key}"):
        FinishedRun.open(run.path)


def test_results_of_an_earlier_version_are_read(run):
    (run.path / MANIFEST).unlink()
    old = {name: value for name, value in run.results.items() if name != "manifest"}
    (run.path / RunFile.RESULTS).write_text(json.dumps(old))
    assert FinishedRun.open(run.path).results == old


def test_results_without_their_manifest_are_not_yet_all(run):
    (run.path / MANIFEST).unlink()
    assert not Run.open(run.path).finished
    with pytest.raises(PruningError, match="no results yet; resume it with --resume"):
        FinishedRun.open(run.path)


@pytest.mark.parametrize("times", [7, pytest.param(210, marks=pytest.mark.slow)])
def test_a_damaged_file_of_an_export_is_refused_or_harmless(tmp_path, times):
    run_of_pattern(tmp_path, "some")
    folder = tmp_path / "model"
    Manifest.write(folder, files_below(folder))

    def weights() -> bytes:
        model, _ = load_model(ModelConfig(str(folder), device="cpu"))
        return tensor_bytes(model.state_dict())

    right = weights()
    for name in ("model.safetensors", "config.json"):
        refused = sum(refused_or_same(weights, right) for _ in damaged(folder / name, times))
        assert refused == times
    (folder / "notes.txt").write_text("nobody reads this as a part of the model")
    weights()
    (folder / "added_tokens.json").write_text('{"the": 0}')
    with pytest.raises(PruningError, match="added_tokens.json came later than manifest.json"):
        weights()


def test_an_initial_mask_of_other_units(tmp_path):
    none, other = torch.zeros(0, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8)
    tensors = {"mask": none, "probabilities": none, "initial": other}
    described = {"granularity": "heads", "channel_block": "1", "parameters": "0"}
    save_file(tensors, path := tmp_path / RunFile.MASK, described)
    with pytest.raises(PruningError, match="is damaged .its initial mask has 2 units of 0"):
        LearnedMask.read(path)
