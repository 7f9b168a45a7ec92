"""Cells side by side: the workers' numbers, and the GPUs that they stand for."""

import os
import signal
from pathlib import Path

import torch

from pgprune.experiments.plan import BenchmarkConfig
from pgprune.utils.devices import choose_device, side_by_side
from pgprune.utils.process_ids import WORKER, worker
from pgprune.utils.process_pool import run_tasks
from pgprune.utils.progress import phase


def note(path: Path) -> None:
    """Writes the number of its worker, which leaves Ctrl-C to its parent."""
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if path.name == "bad":
        raise ValueError("bad luck")
    path.write_text(str(worker()))


def killed(path: Path) -> None:
    """Dies after a long piece of work."""
    with phase("metric") as work:
        work.started -= 75
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_are_numbered_and_failures_are_told(tmp_path, heard, capsys):
    paths = [tmp_path / name for name in ("one", "bad", "two", "three")]
    assert run_tasks(paths, note, 2, "files") == 1
    assert capsys.readouterr().err.endswith(f" left: {tmp_path}/bad ValueError: bad luck\n")
    good = [path for path in paths if path.name != "bad"]
    assert {line.rpartition(" left: ")[2] for line in heard.logged} == set(map(str, good))
    assert {path.read_text() for path in good} <= {"0", "1"}
    assert worker() == 0
    assert heard.labels == ["files"]


def test_a_killed_worker_is_told_with_what_it_did_last(tmp_path, capsys):
    assert run_tasks([tmp_path], killed, 1) == 1
    said = capsys.readouterr().err
    assert said.endswith(f"{tmp_path} ended with status -9, last heard of: metric took 1:15\n")


def test_each_worker_takes_a_gpu_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = []
    for number in range(4):
        monkeypatch.setenv(WORKER, str(number))
        found.append([choose_device("auto"), choose_device("cuda:0"), choose_device("cpu")])
    first, second = torch.device("cuda"), torch.device("cuda:1")
    assert [devices[0] for devices in found] == [first, second, first, second]
    assert all(devices[1:] == [torch.device("cuda:0"), torch.device("cpu")] for devices in found)


def test_as_many_cells_at_a_time_as_there_are_gpus_or_cores(monkeypatch):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert side_by_side("cpu") == cores
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 12)
    assert [side_by_side(name) for name in ("auto", "cuda", "cuda:1")] == [12, 12, 1]
    assert BenchmarkConfig().at_a_time == 8
    assert BenchmarkConfig(workers=20).at_a_time == 20
