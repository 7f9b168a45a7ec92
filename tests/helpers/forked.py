"""Python scripts in copies of this process, which has imported everything.

A copy gets real signals and has its own exit status, as a new process has, which needs seconds of
processor time before it reads its options.
"""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import pytest
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
_SIGNALS = signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT


class Forked:
    """Stands in for a ``subprocess.Popen`` of Python; also where torchrun starts its processes.

    Args:
        args: the interpreter, then ``-m`` and a module or a script, then its options.
        env: the environment; this one's by default.
        caught: whether ``communicate`` returns the output.
        _: further options of ``Popen``, which torchrun gives.
    """

    def __init__(
        self,
        args: Sequence[str],
        env: Mapping[str, str] | None = None,
        caught: bool = False,
        **_: Any,
    ) -> None:
        self._files = [tempfile.TemporaryFile("w+") for _ in range(2 * caught)]
        words = [word for word in args[1:] if word != "-u"]
        self._process = get_context("fork").Process(target=self._run, args=(words, env))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        os.setpgid(self.pid, self.pid)  # torchrun sends signals to the group

    @property
    def returncode(self) -> int | None:
        """The exit status, minus the number of the signal that ended it, or None."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> None:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("python", timeout or 0)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self) -> tuple[str, str]:
        """Waits for its end; returns its output and its errors."""
        self.wait()
        out, err = map(_read, self._files)
        return out, err

    def _run(self, words: list[str], env: Mapping[str, str] | None) -> None:
        # A worker of pytest-xdist ignores Ctrl-C; torchrun has handlers of its own.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for number, file in enumerate(self._files, start=1):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        subprocess_handler.Popen = Forked  # type: ignore[misc, assignment]
        start = runpy.run_path
        if words[0] == "-m":
            start, words = runpy.run_module, words[1:]
        sys.argv = words
        sys.path.insert(0, os.path.dirname(words[0]))  # as Python does for a script
        start(words[0], run_name="__main__")


def process_of(rank: int, launcher: Forked) -> int:
    """The number of a launched process to the system."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    if not children.exists():
        pytest.skip("this system does not list the children of a process")
    return [int(child) for child in children.read_text().split()][rank]


def complaints(err: str) -> list[str]:
    """The messages of the command, without what torchrun says."""
    return [line for line in err.splitlines() if line.startswith("error: ")]


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
