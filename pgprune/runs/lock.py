"""A lock on a directory, so that two commands never write to one run at the same time."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pgprune.errors import PruningError, printable
from pgprune.utils.files import saving
from pgprune.utils.progress import note
from pgprune.utils.temporary import LOCKS, is_same, lock

_MOST = 200  # bytes that name the holder


@contextmanager
def locked(path: Path, what: Path) -> Iterator[None]:
    """Holds a lock while the body runs; it ends with the process, also by a kill.

    Where the file system has no locks, a note says so; Windows has none here.

    Args:
        path: a file, which is there while the lock is held and names the holder.
        what: what is locked, for the sentence that refuses.

    Raises:
        PruningError: another process holds it, or the disk is full or refuses.
    """
    if not LOCKS:
        yield
        return
    with saving(path):
        descriptor = _acquire(path, what)
    try:
        with saving(path):
            holder = f"process {os.getpid()} on {platform.node()} since {datetime.now():%F %T}"
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, what: Path) -> int:
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o666)
        try:
            if not lock(descriptor):
                note(f"no file can be locked here, so start no second command on {what}")
        except BlockingIOError:
            holder = os.pread(descriptor, _MOST, 0).decode(errors="replace")
            os.close(descriptor)
            named = printable(holder.strip()) or "another process"
            raise PruningError(f"{what} is in use by {named}; let it end or stop it") from None
        if is_same(descriptor, path):  # not removed by the one who had it
            return descriptor
        os.close(descriptor)
