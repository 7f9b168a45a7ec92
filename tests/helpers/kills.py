"""Kills at a chosen call: SIGKILL just before the n-th call that changes files."""

import hashlib
import itertools
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pgprune import PruningError

CALLS = ("fsync", "replace", "rename", "mkdir", "unlink", "truncate", "rmdir", "pwrite")
_TIMES = re.compile(r"second|memory|MiB|date|cost")


def dies(work: Callable[[], object], number: int) -> bool:
    """Does work in a process that is killed before the call of that number; False if it ended."""
    child = os.fork()
    if child == 0:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1), os.dup2(silent, 2)
        left = itertools.count()

        def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                if next(left) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return wrapped

        for name in CALLS:
            setattr(os, name, deadly(getattr(os, name)))
        status = 1
        try:
            with suppress(PruningError):  # of what was complete before the kill
                work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "it failed by itself"
    return os.WIFSIGNALED(status)


def left(folder: Path) -> dict[str, Any]:
    """What a command has left below a folder, by path, without what depends on the clock."""
    return dict(_left(folder))


def _left(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if "tensorboard/" in name:  # a file of events for each process
            continue
        if path.is_dir() or path.name == "manifest.json" or "checkpoint/" in name:
            yield name, None
            continue
        content = path.read_bytes().replace(bytes(folder), b"")  # settings name their output
        if path.suffix in (".json", ".jsonl"):
            lines = content.splitlines() if path.suffix == ".jsonl" else [content]
            yield name, [_timeless(json.loads(line)) for line in lines]
        elif path.suffix == ".md":
            yield name, _timeless_tables(content.decode())
        else:
            yield name, hashlib.sha256(content).hexdigest()


def _timeless_tables(text: str) -> list[str]:
    """Returns lines without those, and those columns of tables, that depend on the clock."""
    lines, dropped = [], set[int]()
    for line in text.splitlines():
        cells = line.split("|") if line.startswith("|") else []
        if not cells:
            dropped = set()
        elif not dropped:  # the head of a table
            dropped = {i for i, cell in enumerate(cells) if _TIMES.search(cell)} or {-1}
        kept = "|".join(cell for i, cell in enumerate(cells) if i not in dropped) or line
        lines += [] if _TIMES.search(kept) else [kept]
    return lines


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if not _TIMES.search(key)}
    return [_timeless(one) for one in value] if isinstance(value, list) else value
