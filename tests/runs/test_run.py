"""Runs: nothing is lost, nothing is half written, and every refusal says what to do."""

import json
import math
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.toy_run import Toy, make, steps_of, tensors, train
from pgprune import PruningError
from pgprune.runs.files import check_output
from pgprune.runs.progress import ProgressLog, read_progress
from pgprune.runs.run import Run
from pgprune.runs.versions import versions


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# Creation


def test_a_new_run_holds_its_configuration():
    run = make()
    assert run.path == Path("runs/toy-seed0")
    assert {path.name for path in run.path.iterdir()} == {
        "config.yaml",
        "command.txt",
        "versions.txt",
    }
    assert (run.path / "command.txt").read_text() == "train.py --note 'two words'\n"
    assert f"torch {torch.__version__}\n" in (run.path / "versions.txt").read_text()
    assert os.listdir("runs") == ["toy-seed0"]

    again = Run.open("runs/toy-seed0")
    assert again.config("toy", Toy) == Toy()
    assert again.sections["decided"] == {"executor": "masked"}
    assert not again.finished


def test_a_default_name_that_is_taken_gets_a_number():
    assert [make().path.name for _ in range(3)] == ["toy-seed0", "toy-seed0-2", "toy-seed0-3"]


@pytest.mark.parametrize("kind", ["run", "empty directory", "file", "dangling link"])
def test_an_output_that_exists_is_refused(kind):
    path = Path("out")
    if kind == "run":
        make("out")
    elif kind == "empty directory":
        path.mkdir()
    elif kind == "file":
        path.touch()
    else:
        path.symlink_to("nowhere")
    remedy = ", or resume an interrupted run with --resume out" * (kind == "run")
    with pytest.raises(PruningError, match=f"out exists; choose another --output{remedy}$"):
        check_output("out")
    with pytest.raises(PruningError, match="out exists; choose another --output"):
        make("out")


def test_an_output_below_a_file_is_refused():
    Path("file").touch()
    with pytest.raises(PruningError, match="cannot make a directory in .*file"):
        check_output("file/below/run")


def test_a_directory_that_appears_at_the_last_instant_is_not_touched(monkeypatch):
    make("runs/toy-seed0")
    monkeypatch.setattr(os.path, "lexists", lambda path: "toy" not in str(path))
    assert make().path.name == "toy-seed0-2"


# Opening


def test_no_run_there():
    with pytest.raises(PruningError, match="there is no run at runs/none"):
        Run.open("runs/none")


def test_not_a_run():
    with pytest.raises(PruningError, match="is not a run: it has no config.yaml"):
        Run.open(".")


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00", b"text"])
def test_an_unreadable_configuration(content):
    run = make()
    (run.path / "config.yaml").write_bytes(content)
    with pytest.raises(PruningError, match="config.yaml"):
        Run.open(run.path)


def test_a_run_of_another_command():
    with pytest.raises(PruningError, match="section 'search' is absent"):
        make().config("search", Toy)


# Checkpoints and progress


def test_a_checkpoint_gives_back_every_bit():
    run = make()
    state = {"step": 3, "window": [0.1, 1e-300], "best": math.inf, "name": "é"}
    saved = {**tensors(1 / 3), "strided": torch.arange(6).reshape(2, 3).T}
    run.save_checkpoint(saved, state)
    loaded, loaded_state = Run.open(run.path).load_checkpoint()
    assert loaded_state == state
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert json.loads((run.path / "checkpoint/state.json").read_text())["state"]["step"] == 3


def test_each_step_is_in_progress_once_after_a_resume():
    run = make()
    train(run, [1, 2])
    for step in (3, 4):  # lost: logged after the checkpoint
        run.log(step, {"loss": 9.0, "best": 9.0})
    run.close()
    assert steps_of(run) == [1, 2, 3, 4]

    with Run.open(run.path) as resumed:
        resumed.load_checkpoint()
        train(resumed, [3, 4, 5])
    assert steps_of(run) == [1, 2, 3, 4, 5]
    assert read_progress(run.path / "progress.csv")["loss"] == [1 / step for step in range(1, 6)]


def test_a_run_without_a_checkpoint_starts_over():
    run = make()
    run.log(1, {"loss": 9.0, "best": 9.0})
    run.close()
    with Run.open(run.path) as resumed:
        assert resumed.load_checkpoint() is None
        train(resumed, [1])
    assert steps_of(run) == [1]


def test_tensorboard_shows_each_step_once():
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with make() as run:
        train(run, [1, 2])
        run.log(3, {"loss": 9.0, "best": 9.0})
    time.sleep(1.1)  # event files are named by the second
    with Run.open(run.path) as resumed:
        resumed.load_checkpoint()
        train(resumed, [3, 4])
    events = accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in events] == [1, 2, 3, 4]
    assert events[2].value == pytest.approx(1 / 3)


def test_without_tensorboard_there_is_a_note_and_a_csv(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with make() as run:
        train(run, [1])
        train(run, [2])
    assert caplog.messages == ["no TensorBoard log: it needs pip install 'pgprune[plots]'"]
    assert steps_of(run) == [1, 2]


def test_a_metric_that_the_first_step_did_not_name(tmp_path):
    log = ProgressLog(tmp_path)
    log.add(1, {"loss": 1.0})
    log.add(2, {"los": 1.0})
    with pytest.raises(ValueError, match="los"):
        log.flush()


# The end


def test_the_results_finish_a_run():
    run = make()
    run.write_mask({"mask": torch.ones(3, dtype=torch.uint8)}, {"model": "builtin"})
    run.write_results({"perplexity": {"dense": {"code": 3.5}}, "bad": math.nan, "list": (1, 2)})
    assert Run.open(run.path).finished
    assert json.loads((run.path / "results.json").read_text()) == {
        "perplexity": {"dense": {"code": 3.5}},
        "bad": None,
        "list": [1, 2],
        "manifest": "manifest.json",
    }
    assert torch.equal(load_file(run.path / "mask.safetensors")["mask"], torch.ones(3).byte())


def test_versions_name_what_matters():
    assert {"python", "pgprune", "torch", "transformers", "numpy"} <= versions().keys()


def test_an_interrupted_run_with_results_is_not_finished():
    run = make()
    run.write_results({"completed": False})
    assert not run.finished
    run.write_results({"completed": True})
    assert run.finished
