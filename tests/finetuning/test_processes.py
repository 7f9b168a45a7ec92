"""scripts/finetune.py under torchrun: two processes train on parts of each batch."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.command import SCRIPTS, command, wait_for
from helpers.forked import TORCHRUN, Forked, complaints, process_of
from pgprune import PruningError
from pgprune.finetuning.config import FinetuningConfig
from pgprune.finetuning.local import LocalConfig
from pgprune.finetuning.processes import check_alike, join
from pgprune.finetuning.settings import FinetuningSettings
from pgprune.finetuning.training import TrainingConfig

pytest.importorskip("accelerate", reason="needs pip install accelerate")

LAUNCH = [*TORCHRUN, "--nproc-per-node=2", "--", str(SCRIPTS / "finetune.py")]
LOCAL = ("--local", "--local-windows=7", "--local-passes=1", "--local-batch-size=3")
LONG = ("--tokens=2k", "--batch-size=2", "--checkpoint-every=5", "--validation-windows=1")


@pytest.fixture
def words(run, text) -> list[str]:
    """A run and options of a training that is exact but for rounding."""
    options = {"evaluation": text, "data": text, "validation": text, "dtype": "float64"}
    options |= {"evaluation-length": 16, "sequence-length": 16, "seed": 1}
    return [str(run.path), *(f"--{name}={value}" for name, value in options.items())]


def launch(*options: str) -> Forked:
    """Starts the command as two processes."""
    return Forked([*LAUNCH, *options], caught=True)


def assert_close(first: Path, second: Path) -> None:
    """What was learned is the same but for rounding."""
    a, b = (load_file(path / "model.safetensors") for path in (first, second))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-9)


def measured(directory: Path) -> list[float]:
    """Whatever the record says of losses."""
    record = json.loads((directory / "finetuning.json").read_text())
    looks = [loss for look in record["kept"]["history"] for loss in look["losses"].values()]
    blocks = [block["after"] for block in record.get("local", {}).get("blocks", [])]
    return [*record["loss"].values(), *record["perplexity"]["after"].values(), *looks, *blocks]


@pytest.mark.parametrize(
    "way",
    [
        ("--distill", "--tokens=304", *LOCAL),
        pytest.param(("--samples=10", "--train=all"), marks=pytest.mark.slow),
    ],
    ids=["distilled", "an epoch that ends with one window"],
)
def test_two_processes_learn_what_one_learns(way, words, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = *words, *way, "--batch-size=3", "--validate-every=2", "--checkpoint-every=2"
    assert command("finetune", *options, f"--output={one}", "--quiet") == 0
    process = launch(*options, f"--output={two}")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert_close(one, two)
    assert measured(two) == pytest.approx(measured(one))
    assert out.count("into") == 1, "the main process alone prints"
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model", "run", "one", "two"}, "and alone writes"


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_kill_minus_9_of_one_process_ends_the_command_which_one_process_resumes(
    rank, words, tmp_path
):
    output, checkpoint = tmp_path / "new", tmp_path / "new.checkpoint.safetensors"
    process = launch(*words, *LONG, f"--output={output}")
    wait_for(checkpoint.exists, process)
    os.kill(process_of(rank, process), signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 1
    (complaint,) = complaints(err)
    assert "another process died" in complaint
    assert "--resume" in complaint
    assert not output.exists()
    assert command("finetune", *words, *LONG, f"--output={output}", "--resume", "--quiet") == 0
    assert json.loads((output / "finetuning.json").read_text())["completed"]


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_learned(words, tmp_path):
    output, checkpoint = tmp_path / "new", tmp_path / "new.checkpoint.safetensors"
    process = launch(*words, *LONG, f"--output={output}")
    wait_for(checkpoint.exists, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert complaints(err) == []
    assert not json.loads((output / "finetuning.json").read_text())["completed"]


def test_a_mistake_is_said_once(words, tmp_path):
    process = launch(*words, f"--output={tmp_path}")
    _, err = process.communicate()
    assert process.returncode == 1
    (complaint,) = complaints(err)
    assert complaint.endswith("exists; choose another --output")


@pytest.fixture
def two(monkeypatch) -> None:
    """One of two processes on a host."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"training": TrainingConfig(batch_size=1)},
            "2 processes cannot share the 1 windows of an update; start at most 1, or choose a "
            "larger --batch-size",
        ),
        (
            {"local": LocalConfig(local=True, local_batch_size=1)},
            "2 processes cannot share the 1 windows .* larger --local-batch-size",
        ),
        (
            {"finetuning": FinetuningConfig(device="cuda:0")},
            "device cuda:0 would hold all 2 processes of a host; choose cuda or auto",
        ),
    ],
)
def test_what_processes_cannot_share(change, says, two):
    with pytest.raises(PruningError, match=says):
        FinetuningSettings(**change)


def test_a_host_has_other_files(two, monkeypatch):
    right = {"model": "a", "data": "b"}
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda facts: [right])
    check_alike(dict(right))
    with pytest.raises(PruningError, match="it has another data than the main process; give all"):
        check_alike(right | {"data": "c"})


def test_accelerate_is_missing(two, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(PruningError, match="need the package accelerate; run `pip install"):
        join("cpu")
