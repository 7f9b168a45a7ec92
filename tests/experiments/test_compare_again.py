"""scripts/compare_methods.py killed, repeated and misused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.command import Crash, results
from helpers.experiments_toy import ROOT, lines
from pgprune.errors import PruningError
from pgprune.experiments import variants

SCRIPT = ROOT / "scripts" / "compare_methods.py"


def test_what_is_measured_is_not_measured_again(compare, tmp_path, monkeypatch, capsys):
    few = ("--methods", "magnitude", "random", "--rates", "0.33", "--seeds=1")
    real, count = variants.fit_repair, 0

    def crash_at_the_second(*asked):
        nonlocal count
        count += 1
        if count == 2:
            raise Crash
        return real(*asked)

    monkeypatch.setattr(variants, "fit_repair", crash_at_the_second)
    with pytest.raises(Crash):
        compare(tmp_path, *few)
    monkeypatch.setattr(variants, "fit_repair", real)
    before = lines(tmp_path)
    assert len(before) == 3
    run = "pgprune.experiments.baseline.Baseline.run"
    monkeypatch.setattr(run, lambda *_: pytest.fail("run twice"))
    assert compare(tmp_path, *few) == 0
    assert lines(tmp_path)[:3] == before and len(lines(tmp_path)) == 4
    assert "2 cells, 1 measured before" in capsys.readouterr().err

    monkeypatch.setattr(variants, "fit_repair", lambda *_: pytest.fail("repaired twice"))
    assert compare(tmp_path, *few) == 0
    assert len(lines(tmp_path)) == 4
    assert "2 cells, 2 measured before" in capsys.readouterr().err


def test_an_unfinished_run_of_a_method_is_made_anew(compare, compared, tmp_path):
    source = next(path.parent for path in compared.rglob("results.json"))
    half = tmp_path / "model-0.33" / "magnitude" / "seed0"
    half.mkdir(parents=True)
    (half / "config.yaml").write_bytes((source / "config.yaml").read_bytes())
    (tmp_path / "settings.json").write_text("{}")
    few = ("--methods", "magnitude", "--rates=0.33", "--repairs=none")
    assert compare(tmp_path, *few) == 0
    assert results(half)["method"] == "magnitude"


def test_failures_are_tried_again_only_if_asked(compare, compared, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(compared, output)
    few = ("--methods", "sleb:method-samples=8", "--rates", "0.5")
    before = lines(output)
    compare(output, *few)
    assert lines(output) == before
    compare(output, *few, "--retry")
    assert len(lines(output)) == len(before) + 1
    assert lines(output)[-1] == next(line for line in before if '"error":' in line)


def test_records_without_their_settings_are_not_added_to(compare, compared, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(compared, output)
    (output / "settings.json").unlink()
    with pytest.raises(PruningError, match="settings.json is gone, .*; restore it from a copy, or"):
        compare(output, "--methods", "random:method-samples=8", "--rates", "0.33")


def test_texts_are_told_apart_by_their_folders(compare, compared, arguments, tmp_path, monkeypatch):
    few = ("--methods", "random:method-samples=8", "--rates", "0.33", "--seeds=2")
    text = Path(arguments["calibration"])
    monkeypatch.chdir(text.parent)
    before = lines(compared)
    assert compare(compared, *few, f"--calibration={text.name}") == 0
    assert lines(compared) == before, "the same text, named from its own folder"
    monkeypatch.chdir(tmp_path)
    shutil.copy(text, tmp_path)
    with pytest.raises(PruningError, match="was measured with calibration .*; repeat it with"):
        compare(compared, *few, f"--calibration={text.name}")


def test_other_settings_need_another_directory(compare, compared):
    with pytest.raises(PruningError, match="was measured with timesteps 1, not 2"):
        compare(compared, "--timesteps=2")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--methods", "alphago"], "'alphago' is unknown; choose all, or one of reinforce, auto"),
        (["--methods", "flap:nonsense=1"], "method 'flap:nonsense=1': unrecognized arguments"),
        (["--methods", "flap:seed=1"], "seed in method 'flap:seed=1'"),
        (["--methods", "flap:layers"], "'layers' in method 'flap:layers' is not an option and"),
        (["--methods", "sleb:granularity=heads"], "method sleb does not fit --granularity heads"),
        (["--rates", "0.3", "1.5"], "--rates: must be .* above 0 and below 1, not 1.5"),
        (["--rates", "many"], "--rates: must be a number .* 'many'"),
        (["--repairs", "prayer"], "--repairs: must be one of none, bias, .* 'prayer'"),
        (["--models", "builtin", "nowhere/"], "nowhere"),
        (["--evaluation=nowhere.txt"], "nowhere.txt"),
        (["--workers=0"], "--workers: must be a whole number at least 1"),
        (["--into=nowhere.md"], "there is no page nowhere.md; give a Markdown file"),
        ([f"--into={SCRIPT}"], "has no line <!-- comparison --> with a line <!-- end -->"),
        (["--report"], "nothing of this comparison is measured yet"),
    ],
)
def test_mistakes_are_refused_before_any_work(asked, says, compare, tmp_path):
    with pytest.raises(PruningError, match=says):
        compare(tmp_path / "out", *asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_processes_end_with_their_parent_and_the_command_goes_on(comparison_options, tmp_path):
    few = ("--methods", "magnitude", "flap:method-samples=8", "--rates=0.33", "--workers=2")
    command = [sys.executable, str(SCRIPT), f"--output={tmp_path}", *comparison_options, *few]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while "cells" not in process.stderr.readline():
        assert process.poll() is None
    if not Path("/proc/self/stat").exists():
        pytest.skip("the system does not list processes")
    cells: list[int] = []
    while not cells:
        assert process.poll() is None
        servers = _children(process.pid)
        cells = [pid for server in servers for pid in _children(server)]
    pids = servers + cells
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while any(map(_alive, pids)):
        assert time.monotonic() < deadline, "a cell outlived the command"
        time.sleep(0.1)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "Best forward-only row" in again.stdout
    records = [json.loads(line) for line in lines(tmp_path)]
    keys = [(record["method"], record["repair"]) for record in records]
    assert len(keys) == len(set(keys)) == 4


def _children(pid: int) -> list[int]:
    return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _of(stat, pid)]


def _of(stat: Path, parent: int) -> bool:
    """Whether a process has this parent; it may be gone."""
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1]) == parent
    except OSError:
        return False


def _alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
