"""Runs tasks in separate processes, several at a time, with one CPU thread each.

Processes are forks of a server that has imported the modules of this process, since the imports
take longer than a small task. They end with this process, also if it is killed.
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
    """Runs tasks in processes that end with this one.

    Args:
        tasks: started in this order; they must be picklable.
        work: runs a task; a function of a module. In it ``process_ids.worker`` is the number of its
            process, below ``workers``.
        workers: processes at a time.
        done: called after each task with the last line of its error, empty if it succeeded.

    Returns:
        The number of tasks that failed.
    """
    waiting, running = deque(tasks), dict[BaseProcess, tuple[T, IO[str], int]]()
    free, failed = set(range(workers)), 0
    try:
        while waiting or running:
            while waiting and free:
                task, written = waiting.popleft(), tempfile.NamedTemporaryFile("r+")
                number = min(free)  # numbers choose GPUs
                free.remove(number)
                running[_start(work, task, written.name, number)] = task, written, number
            wait([process.sentinel for process in running])  # until one ends
            for process in [process for process in running if process.exitcode is not None]:
                task, errors, number = running.pop(process)
                free.add(number)
                error = _failure(process.exitcode or 0, errors)
                failed += bool(error)
                done(task, error)
    finally:
        for process in running:
            process.kill()  # after an error or Ctrl-C
    return failed


def progress_printer(tasks: int) -> Callable[[object, str], None]:
    """Returns a function that prints, after each task, its number and the time left, to stderr."""
    started, count = time.monotonic(), 0

    def done(task: object, error: str) -> None:
        nonlocal count
        count += 1
        left = (time.monotonic() - started) / count * (tasks - count) / 60  # minutes
        line = f"{count}/{tasks}, {left:.0f} min left: {task} {error}".strip()
        print(line, file=sys.stderr, flush=True)

    return done


def _start(work: Callable[[T], None], task: T, errors: str, number: int) -> BaseProcess:
    """Starts a process that runs a task and writes its errors to a file."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context: multiprocessing.context.BaseContext = multiprocessing.get_context("forkserver")
        ours = __name__.partition(".")[0]
        context.set_forkserver_preload([n for n in sys.modules if n.partition(".")[0] == ours])
    else:
        context = multiprocessing.get_context("spawn")  # Windows cannot fork
    process = context.Process(target=_do, args=(work, task, errors, number))  # type: ignore[attr-defined]
    with _one_thread():
        process.start()
    return process


def _do(work: Callable[[T], None], task: T, errors: str, number: int) -> None:
    """Runs a task; called in the new process."""
    os.environ[WORKER] = str(number)
    os.setsid()  # keeps Ctrl-C from this process: the parent gets it and ends all
    for path, stream in ((os.devnull, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY), stream)  # also for C libraries
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work(task)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # at once: the parent has gone


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limits processes that start in the body to one thread each."""
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
    """Returns the last line of a failed process's errors, or an empty string on success."""
    with errors:
        lines = errors.read().split("\n") if status else []
    said = [line.strip() for line in lines if line.strip()]
    # The last line of a traceback is the error.
    return (said[-1] if said else f"ended with status {status}") if status else ""
