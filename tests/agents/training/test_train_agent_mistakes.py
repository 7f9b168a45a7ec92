"""scripts/train_agent.py as a user runs it: mistakes of the user, and a full disk."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.command import Crash, assert_same_run, start, train
from pgprune.agents.reinforce import Reinforce
from pgprune.errors import PruningError
from pgprune.utils import files


def test_bad_input_gets_one_line_and_status_2(options, tmp_path):
    process = start(*options, "--prune-rate=1.5")
    out, err = process.communicate()
    assert process.returncode == 2
    assert out == ""
    assert re.fullmatch(r"error: .*prune-rate.*below 1.*\n", err)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--prune-rate=half", "a number"),
        ("--prune-rate=0.999", "leaves nothing"),
        ("--model=nowhere/", "nowhere"),
        ("--device=cuda:9", "cuda:9"),
        ("--calibration=absent.txt", "absent.txt"),
        ("--init=layerwise-ppl", "granularity"),
        ("--masks-per-step=1", "masks_per_step"),
        ("--sequence-length=100000", "context"),
        ("--agent=alphago", "reinforce"),
        ("--nonsense=1", "nonsense"),
    ],
)
def test_mistakes_are_refused_before_a_run_exists(option, says, options, tmp_path):
    with pytest.raises(PruningError, match=says):
        train(*options, f"--output={tmp_path / 'run'}", option)
    assert not (tmp_path / "run").exists()


def test_an_existing_output_is_not_touched(options, tmp_path):
    with pytest.raises(PruningError, match="exists"):
        train(*options, f"--output={tmp_path}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "changed", "message"),
    [
        ("model_fingerprint: .*", "model_fingerprint: abc", "another model"),
        ("text_fingerprint: .*", "text_fingerprint: abc", "another text"),
        ("  validation: held out\n", "", "earlier version"),
    ],
)
def test_resume_refuses_another_model_text_or_version(
    setting, changed, message, undisturbed, tmp_path
):
    text = (undisturbed / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(re.sub(setting, changed, text))
    with pytest.raises(PruningError, match=message):
        train(f"--resume={tmp_path}")


def test_resume_refuses_further_settings(undisturbed):
    with pytest.raises(PruningError, match="--prune-rate has no effect"):
        train(f"--resume={undisturbed}", "--prune-rate=0.2")


def test_a_corrupted_checkpoint_is_named(options, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Reinforce, "learn", lambda *arguments: (_ for _ in ()).throw(Crash))
        train(*options, f"--output={run}")
    checkpoint = run / "checkpoint" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    with pytest.raises(PruningError, match=r"checkpoint.* is damaged"):
        train(f"--resume={run}")


def test_a_full_disk_leaves_the_previous_checkpoint(options, undisturbed, tmp_path, monkeypatch):
    run = tmp_path / "run"
    checkpoint = run / "checkpoint" / "checkpoint.safetensors"
    write_file, previous = files.write_file, []

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(path: Path, data: bytes) -> None:
        """The second checkpoint is written, but the disk cannot take it."""
        with monkeypatch.context() as disk:
            if path == checkpoint and checkpoint.exists():
                previous.append(checkpoint.read_bytes())
                disk.setattr(os, "fsync", full)
            write_file(path, data)

    says = rf"no space left on device.*--resume {re.escape(str(run))}"
    with monkeypatch.context() as patched, pytest.raises(PruningError, match=says):
        patched.setattr(files, "write_file", write)
        train(*options, f"--output={run}")
    assert previous == [checkpoint.read_bytes()]
    assert list(checkpoint.parent.glob(".*")) == [], "nothing half-written is left"
    assert train(f"--resume={run}") == 0
    assert_same_run(undisturbed, run)
