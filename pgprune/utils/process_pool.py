"""Tasks in processes of their own, several at a time, of one CPU thread each.

Processes are forks of a server that has loaded what this process has loaded, which takes longer
than a small task. They end with this process, so that nothing goes on working where the command was
killed.
"""

import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import IO, TypeVar

from pgprune.utils.process_ids import WORKER

T = TypeVar("T")


def run_tasks(
    tasks: Iterable[T], work: Callable[[T], None], workers: int, done: Callable[[T, str], None]
) -> int:
    """Does tasks, in processes that end with this one.

    Args:
        tasks: to do, in this order; they can be pickled.
        work: does one; a function of a module. ``ranks.worker`` is its number below ``workers``.
        workers: processes at a time.
        done: told of each task, and of the last line of its error where it failed unexpectedly.

    Returns:
        How many failed unexpectedly.
    """
    waiting, running = deque(tasks), dict[BaseProcess, tuple[T, IO[str], int]]()
    free, failed = set(range(workers)), 0
    try:
        while waiting or running:
            while waiting and free:
                task, written = waiting.popleft(), tempfile.NamedTemporaryFile("r+")
                number = min(free)
                free.remove(number)
                running[_start(work, task, written.name, number)] = task, written, number
            wait([process.sentinel for process in running])
            for process in [process for process in running if process.exitcode is not None]:
                task, errors, number = running.pop(process)
                free.add(number)
                error = _failure(process.exitcode or 0, errors)
                failed += bool(error)
                done(task, error)
    finally:
        for process in running:
            process.kill()
    return failed


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


def _start(work: Callable[[T], None], task: T, errors: str, number: int) -> BaseProcess:
    """Starts a process, a worker's, that does a task and writes its errors to a file."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context: multiprocessing.context.BaseContext = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([name for name in sys.modules if _is_ours(name)])
    else:
        context = multiprocessing.get_context("spawn")
    process = context.Process(target=_do, args=(work, task, errors, number))  # type: ignore[attr-defined]
    with _one_thread():
        process.start()
    return process


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]


def _do(work: Callable[[T], None], task: T, errors: str, number: int) -> None:
    """In a process of its own: does a task."""
    os.environ[WORKER] = str(number)
    os.setsid()  # Ctrl-C is the parent's, which ends them all
    for path, stream in ((os.devnull, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work(task)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Lets processes that start have one thread each for their numbers."""
    name = "OMP_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _failure(status: int, errors: IO[str]) -> str:
    """The last line that a process wrote before it failed; nothing where it did not."""
    with errors:
        lines = errors.read().split("\n") if status else []
    said = [line.strip() for line in lines if line.strip()]
    return (said[-1] if said else f"ended with status {status}") if status else ""
