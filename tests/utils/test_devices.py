"""Devices: whether other processes take the cores that threads would wait for."""

import pytest
import torch

from pgprune.utils import devices
from pgprune.utils.progress import listening


class Lines:
    """Listens to lines of the progress alone."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def said(monkeypatch, tmp_path):
    """What is said on a machine of two cores and two threads, by what its file of loads holds."""

    def of(content: str) -> list[str]:
        (tmp_path / "loadavg").write_text(content)
        monkeypatch.setattr(devices, "_PROCESSES", tmp_path / "loadavg")
        monkeypatch.setattr(devices, "side_by_side_on_cpu", lambda: 2)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        devices.say_if_busy.cache_clear()
        lines = Lines()
        with listening(lines):
            devices.say_if_busy()
            devices.say_if_busy()
        devices.say_if_busy.cache_clear()
        return lines.said

    return of


def test_a_busy_machine_is_said_once(said):
    (sentence,) = said("1.04 0.50 0.20 2/300 4711")
    assert sentence.startswith("other processes use 1 of 2 cores, and 2 threads wait")
    assert sentence.endswith("OMP_NUM_THREADS=1 may be much faster")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("0.10 1.90 1.90 1/300 4711", id="idle"),
        pytest.param("1.90 1.00 0.20 1/300 4711", id="busy until now"),
        pytest.param("0.20 0.10 0.10 3/300 4711", id="busy for a moment"),
        pytest.param("nothing", id="another system"),
    ],
)
def test_else_nothing_is_said(said, content):
    assert said(content) == []
