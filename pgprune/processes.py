"""Tasks in processes of their own, several at a time, of one CPU thread each.

A process gets its task as one line on its standard input and ends when that is closed, so that
nothing goes on working where the command was killed.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import IO, Protocol, TypeVar

_POLL = 0.1  # seconds


class Line(Protocol):
    """A task that one line can hold."""

    def to_json(self) -> str:
        """The task as one line."""


T = TypeVar("T", bound=Line)


def run_tasks(
    tasks: Iterable[T], command: Sequence[str], workers: int, done: Callable[[T, str], None]
) -> int:
    """Does tasks, in processes that end with this one.

    Args:
        tasks: to do, in this order.
        command: starts a process that calls ``line_from_parent``.
        workers: processes at a time.
        done: told of each task, and of the last line of its error where it failed unexpectedly.

    Returns:
        How many failed unexpectedly.
    """
    waiting, running = deque(tasks), dict[subprocess.Popen[str], tuple[T, IO[str]]]()
    failed = 0
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                task, written = waiting.popleft(), tempfile.TemporaryFile("w+")
                running[_start(command, task, written)] = task, written
            time.sleep(_POLL)
            for process in [process for process in running if process.poll() is not None]:
                task, errors = running.pop(process)
                error = _failure(process.returncode, errors)
                failed += bool(error)
                done(task, error)
    finally:
        for process in running:
            process.kill()
    return failed


def line_from_parent() -> str:
    """In a process of ``run_tasks``: the task; from then on the process ends with its parent."""
    line = sys.stdin.readline()

    def watch() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    return line


def teller(tasks: int) -> Callable[[object, str], None]:
    """What says on standard error which of so many tasks is done, and how long the rest takes."""
    started, count = time.monotonic(), 0

    def done(task: object, error: str) -> None:
        nonlocal count
        count += 1
        left = (time.monotonic() - started) / count * (tasks - count) / 60
        line = f"{count}/{tasks}, {left:.0f} min left: {task} {error}".strip()
        print(line, file=sys.stderr, flush=True)

    return done


def _start(command: Sequence[str], task: Line, errors: IO[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is the parent's, which ends them all
    )
    assert process.stdin is not None
    process.stdin.write(task.to_json() + "\n")
    process.stdin.flush()
    return process


def _failure(status: int, errors: IO[str]) -> str:
    """The last line that a process wrote before it failed; nothing where it did not."""
    with errors:
        errors.seek(0)
        lines = errors.read().split("\n") if status else []
    said = [line.strip() for line in lines if line.strip()]
    return (said[-1] if said else f"ended with status {status}") if status else ""
