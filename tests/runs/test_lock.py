"""The lock of a run: one writer at a time, and none after its death."""

import os
import signal

import pytest

from helpers.toy_run import make, train
from pgprune import PruningError
from pgprune.runs.lock import locked
from pgprune.runs.run import Run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def holder():
    """Starts a process that locks the run and waits; killed in the end."""
    children = []

    def start(path):
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            with Run.open(path):
                os.write(told, b"!")
                signal.pause()
        children.append(child)
        os.read(ready, 1)
        return child

    yield start
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_second_process_is_refused_and_told_who_has_it(holder):
    run = make()
    child = holder(run.path)
    with pytest.raises(PruningError, match=f"runs/toy-seed0 is in use by process {child} on "):
        Run.open(run.path).lock()


def test_the_lock_dies_with_its_process(holder):
    run = make()
    child = holder(run.path)
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with Run.open(run.path) as resumed:
        train(resumed, [1])
    assert not (run.path / ".lock").exists()


def test_the_lock_ends_with_the_writing(tmp_path):
    run = make()
    for _ in range(2):
        with Run.open(run.path) as opened:
            opened.lock()  # again, which changes nothing
            assert (run.path / ".lock").exists()
        assert not (run.path / ".lock").exists()


def test_a_link_at_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".lock").symlink_to("victim")
    with pytest.raises(PruningError, match="replace the symbolic link"):
        with locked(tmp_path / ".lock", tmp_path):
            pass
    assert (tmp_path / "victim").read_text() == "precious"
