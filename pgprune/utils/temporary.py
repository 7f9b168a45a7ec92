"""Temporary files and directories: unique names, nobody else's content, and no litter of the dead.

What is being written has the name ``.NAME.MACHINE.TOKEN.tmp`` beside the final one and is locked
until it is renamed. The lock ends with its process. So what has such a name of this machine and no
lock was left by a kill, and the next writer in that directory removes it.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from pgprune.utils.progress import note

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked and nothing removed
    fcntl = None  # type: ignore[assignment]

LOCKS = fcntl is not None
"""Whether files can be locked."""

_LEFT = re.compile(r"\..+\.([0-9a-f]{8})\.[0-9a-f]{16}\.tmp|\..+\.\d+\.tmp")  # the second is older
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
_told = set[str]()


@contextmanager
def temporary(path: Path, directory: bool = False) -> Iterator[Path]:
    """Makes an empty file or directory beside a path, for the body to fill and rename.

    Yields:
        Its path. After the body it is gone, unless it was renamed.

    Raises:
        OSError: the disk is full or refuses.
    """
    remove_dead(path.parent)
    made, descriptor = _make(path, directory)
    try:
        yield made
    finally:
        if directory:
            shutil.rmtree(made, ignore_errors=True)
        else:
            made.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def remove_dead(folder: Path) -> None:
    """Removes what killed writers have left in a directory, and says so.

    What may be of a living process of another machine stays, and is mentioned once.
    """
    try:
        names = os.listdir(folder)
    except PermissionError:  # one may write where one may not look
        return
    found = {name: match for name in names if (match := _LEFT.fullmatch(name))}
    for name, match in found.items():
        left = folder / name
        if match[1] == _machine():
            _remove_if_dead(left)
        elif left.is_dir() and str(left) not in _told:
            _told.add(str(left))
            note(f"{left} was left by a killed command, unless another machine is writing it")


def open_new(path: str, flags: int) -> int:
    """Opens a file as ``open(opener=open_new)`` asks, but follows no symbolic link."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def lock(descriptor: int) -> bool:
    """Locks an open file or directory until it is closed or the process ends.

    Returns:
        Whether it is locked: not where the file system has no locks.

    Raises:
        BlockingIOError: another process has locked it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def is_same(descriptor: int, path: Path) -> bool:
    """Whether a path still names what was opened, which another process may have removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _make(path: Path, directory: bool) -> tuple[Path, int | None]:
    while True:
        # Long names stay legal, and bytes of other encodings what they are.
        name = os.fsdecode(os.fsencode(path.name)[:100])
        made = path.with_name(f".{name}.{_machine()}.{secrets.token_hex(8)}.tmp")
        # Both fail where the name exists, a symbolic link included.
        made.mkdir() if directory else made.touch(exist_ok=False)
        if fcntl is None:
            return made, None
        descriptor: int | None = None
        try:
            descriptor = os.open(made, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            lock(descriptor)
            if is_same(descriptor, made):
                return made, descriptor
        except (FileNotFoundError, BlockingIOError):
            pass
        # Another writer took it for dead before it was locked.
        if descriptor is not None:
            os.close(descriptor)


def _remove_if_dead(left: Path) -> None:
    """Removes a file or directory that no process has locked."""
    if fcntl is None:
        return
    try:
        descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # just renamed, or nothing that was made here
        return
    try:
        if not lock(descriptor) or not is_same(descriptor, left):
            return
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
        note(f"removed {left}, which a killed command had left")
    except OSError:  # a living writer has the lock, or the disk refuses
        pass
    finally:
        os.close(descriptor)


@cache
def _machine() -> str:
    """Eight digits that tell this start of this machine from others, without naming it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    known = boot.read_text() if boot.exists() else str(uuid.getnode())
    return hashlib.sha256(known.encode()).hexdigest()[:8]
