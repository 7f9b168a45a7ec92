"""Runs tasks in separate processes, several at a time, with one CPU thread each.

Processes are forks of a server that has imported the modules of this process, since the imports
take longer than a small task. They end with this process, also if it is killed.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import IO, TypeVar

from pgprune.utils.process_ids import WORKER
from pgprune.utils.progress import Phase, log, phase
from pgprune.utils.progress_view import showing

T = TypeVar("T")

_LOOK_EVERY = 2.0  # seconds, for what the processes say


def run_tasks(
    tasks: Sequence[T], work: Callable[[T], None], workers: int, label: str = "tasks"
) -> int:
    """Runs tasks in processes that end with this one, as a phase; says how each of them goes.

    Args:
        tasks: started in this order; they must be picklable, and named by their texts.
        work: runs a task; a function of a module. In it ``process_ids.worker`` is the number of its
            process, below ``workers``.
        workers: processes at a time.
        label: names the phase, and the tasks in the plural.

    Returns:
        The number of tasks that failed.
    """
    with phase(label, len(tasks)) as done:
        return _run_tasks(tasks, work, workers, done)


def _run_tasks(tasks: Sequence[T], work: Callable[[T], None], workers: int, done: Phase) -> int:
    waiting, running = deque(tasks), dict[BaseProcess, tuple[T, IO[str], int]]()
    free, failed = set(range(workers)), 0
    try:
        while waiting or running:
            while waiting and free:
                task, written = waiting.popleft(), tempfile.NamedTemporaryFile("r+")
                number = min(free)  # numbers choose GPUs
                free.remove(number)
                running[_start(work, task, written.name, number)] = task, written, number
            wait([process.sentinel for process in running], _LOOK_EVERY)  # until one ends
            for process in [process for process in running if process.exitcode is not None]:
                task, errors, number = running.pop(process)
                free.add(number)
                error = _failure(process.exitcode or 0, errors)
                failed += bool(error)
                done.advance()
                line = f"{done.count}, {done.time}: {task} {error}".rstrip()
                if error:
                    print(line, file=sys.stderr, flush=True)  # also where nobody listens
                else:
                    log(line)
            done.figures = {str(task): _last_line(said) for task, said, _ in running.values()}
    finally:
        for process in running:
            process.kill()  # after an error or Ctrl-C
    return failed


def _start(work: Callable[[T], None], task: T, errors: str, number: int) -> BaseProcess:
    """Starts a process that runs a task and writes its errors to a file."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context: multiprocessing.context.BaseContext = multiprocessing.get_context("forkserver")
        ours = __name__.partition(".")[0]
        context.set_forkserver_preload([n for n in sys.modules if n.partition(".")[0] == ours])
    else:
        context = multiprocessing.get_context("spawn")  # Windows cannot fork
    process = context.Process(target=_do, args=(work, task, errors, number))  # type: ignore[attr-defined]
    with _one_thread(), _deaf():
        process.start()
    return process


def _do(work: Callable[[T], None], task: T, errors: str, number: int) -> None:
    """Runs a task; called in the new process."""
    os.environ[WORKER] = str(number)
    os.setsid()  # keeps Ctrl-C from this process: the parent gets it and ends all
    for path, stream in ((os.devnull, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY), stream)  # also for C libraries
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with showing():  # in the file of errors, whose last line the parent shows
        work(task)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # at once: the parent has gone


@contextmanager
def _deaf() -> Iterator[None]:
    """Lets processes that start in the body ignore Ctrl-C; it ends them with their parent."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can say how signals are handled
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
        said = _last_line(errors) if status else ""
    if status < 0:  # killed, so its last line is about its progress
        return f"ended with status {status}, last heard of: {said or 'nothing'}"
    # The last line of a traceback is the error.
    return said or (f"ended with status {status}" if status else "")


def _last_line(said: IO[str]) -> str:
    said.seek(0)
    lines = [line.strip() for line in said if line.strip()]
    return lines[-1] if lines else ""
