"""Runs meet kill -9, full disks and damaged files: what was saved stays, damage is noticed."""

import errno
import os
import shutil
import signal
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import torch

from helpers.toy_run import Toy, make, steps_of, train
from pgprune import PruningError
from pgprune.runs.run import Run


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def full_disk(monkeypatch):
    """Makes every fsync fail as on a full disk, after the first ``spare`` of them."""

    @contextmanager
    def full(spare=0):
        sync, space = os.fsync, iter(range(spare))

        def fsync(descriptor):
            if next(space, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            yield

    return full


def test_a_full_disk_at_creation_leaves_nothing(full_disk):
    with full_disk(), pytest.raises(PruningError, match="no space left on device; free some space"):
        make("deep/out")
    assert os.listdir("deep") == []


def test_a_run_that_was_removed_is_not_called_intact():
    train(run := make(), [1])
    shutil.rmtree(run.path)
    with pytest.raises(PruningError, match="was removed while.*start a new run"):
        train(run, [2])
    assert not run.path.exists()


@pytest.mark.parametrize("where", ["empty", "truncated", "header", "middle", "last byte"])
def test_a_damaged_checkpoint_is_noticed(where):
    run = make()
    train(run, [1])
    path = run.path / "checkpoint/checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    if where == "empty":
        content = b""
    elif where == "truncated":
        content = content[:-10]
    else:
        position = {"header": 20, "middle": len(content) - 20, "last byte": -1}[where]
        content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(PruningError, match="checkpoint.safetensors is damaged; delete it"):
        Run.open(run.path).load_checkpoint()


def test_a_checkpoint_of_another_model_is_refused():
    train(run := make(), [1])
    train(other := make(toy=Toy(model="other")), [1])
    name = "checkpoint/checkpoint.safetensors"
    (run.path / name).write_bytes((other.path / name).read_bytes())
    with pytest.raises(PruningError, match="is of another model or other settings than"):
        Run.open(run.path).load_checkpoint()


@pytest.mark.parametrize("spare", range(5))
def test_a_full_disk_never_destroys_what_was_saved(full_disk, spare):
    run = make()
    train(run, [1, 2])
    with full_disk(spare), pytest.raises(PruningError, match="no space left.*--resume runs/toy"):
        train(run, [3, 4])
    assert not list(run.path.rglob("*.tmp"))

    resumed = Run.open(run.path)
    step = resumed.load_checkpoint()[1]["step"]
    assert step in (2, 4)
    assert steps_of(run) == list(range(1, step + 1))
    train(resumed, list(range(step + 1, 6)))
    assert steps_of(run) == [1, 2, 3, 4, 5]


def test_the_same_process_can_go_on_when_there_is_space_again(full_disk):
    run = make()
    train(run, [1])
    with full_disk(), pytest.raises(PruningError):
        train(run, [2])
    train(run, [3])
    assert steps_of(run) == [1, 2, 3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_dying_at_any_system_call_leaves_a_whole_checkpoint(owner, name, number):
    with make() as run:
        train(run, [1, 2])
    child = _fork(_train_and_die_at, run.path, owner, name, number)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])

    resumed = Run.open(run.path)
    step = int(resumed.load_checkpoint()[1]["step"])
    assert step in (2, 4)
    train(resumed, list(range(step + 1, 6)))
    assert steps_of(run) == [1, 2, 3, 4, 5]


def _fork(function, *args):
    """Calls the function in a process of its own; returns the process."""
    child = os.fork()
    if child == 0:
        try:
            function(*args)
        finally:
            os._exit(1)
    return child


def _train_and_die_at(path, owner, name, number):
    """Goes on with a run in which a system function kills its process at the given call."""
    original, left = getattr(owner, name), iter(range(number))

    def dying(*args):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(owner, name, dying)
    resumed = Run.open(path)
    resumed.load_checkpoint()
    train(resumed, [3, 4])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("delay", [0.0, 0.007, 0.03])
def test_kill_9_at_any_moment(delay):
    with make() as run:
        train(run, [1])
    checkpoint = run.path / "checkpoint" / "checkpoint.safetensors"
    first = checkpoint.stat().st_ino
    child = _fork(_train_forever, run.path)
    while checkpoint.stat().st_ino == first:  # a replaced file is another file
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it should not have ended by itself"
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    resumed = Run.open(run.path)
    saved, state = resumed.load_checkpoint()
    assert state["step"] >= 2
    assert torch.equal(saved["s"], torch.full((20000,), float(state["step"])))
    assert steps_of(run) == list(range(1, state["step"] + 1))


def _train_forever(path):
    resumed = Run.open(path)
    resumed.load_checkpoint()
    for step in count(2):
        resumed.log(step, {"loss": 1 / step})
        resumed.save_checkpoint({"s": torch.full((20000,), float(step))}, {"step": step})
