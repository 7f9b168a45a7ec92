"""Writes files completely or not at all, also at a crash or on a full disk."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pgprune.errors import PruningError, first_line
from pgprune.utils.options import at_home
from pgprune.utils.temporary import open_new, temporary

_OTHER = "see to that"
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "make the file system writable",
    errno.EACCES: "make it writable for you",
    errno.EPERM: "make it writable for you",
    errno.ENOENT: "make its directory again",
    errno.EEXIST: "move away what is there",
    errno.ENOTEMPTY: "move away what is there",
    errno.EISDIR: "move away the directory of that name",
    errno.ENOTDIR: "move away the file in its place",
    errno.ELOOP: "replace the symbolic link by what it names",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "check the disk",
}


def write_file(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, flushes it to the disk and renames it.

    Raises:
        OSError: the disk is full or refuses; a previous file stays as it was.
    """
    with temporary(path) as made:
        with open(made, "wb", opener=open_new) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)  # same file system: readers see the old or the new file
    sync_directory(path.parent)


def read_text(path: Path) -> str:
    """Reads the text of a small file.

    Raises:
        PruningError: the file cannot be read, or is not text in UTF-8.
    """
    if path.exists() and not path.is_file():  # a pipe would wait for a writer
        raise PruningError(f"cannot read {path}: it is no file; move it away")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PruningError(f"cannot read {path}: {error}") from error


def user_path(text: str) -> Path:
    """Returns the path that a user has typed, with ``~`` as the home directory.

    Raises:
        PruningError: it cannot be a path here: an unknown home, a name that is too long, a folder
            that may not be read.
    """
    try:
        path = Path(at_home(text))
        path.exists()  # raises for all but a missing file
    except PruningError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise PruningError(f"the path {text!r} cannot be used ({reason}); give another") from error
    return path


def append_line(path: Path, line: str) -> None:
    """Appends a line to a file, new or not, and flushes it to the disk.

    Raises:
        OSError: the disk is full or refuses; the file is as before.
    """
    with open(path, "ab", opener=open_new) as file:
        size = file.tell()
        try:
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, size)  # removes a part of the line
            raise


def sync_directory(path: Path) -> None:
    """Flushes a directory's entries to the disk, so that a rename survives a power cut."""
    if os.name == "posix":  # Windows cannot open directories
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Returns tensors of any device as the content of a safetensors file."""
    plain = {
        name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()
    }  # safetensors refuses strides
    return _in_order(save(plain, dict(metadata))) if metadata else save(plain)


def _in_order(content: bytes) -> bytes:
    """Sorts the metadata of a safetensors file, whose order is another in each process."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, memoryview(content)[end:]])


def check_new(path: Path, remedy: str = "choose another --output") -> None:
    """Checks that a directory can be made; to be called before long work.

    Raises:
        PruningError: the directory exists or cannot be made.
    """
    if os.path.lexists(path):
        raise PruningError(f"{path} exists; {remedy}")
    check_place(path.parent)
    _check_length(path)


def make_folder(path: Path) -> None:
    """Makes a directory in one that exists; one of that name is good, a link to one is not.

    Raises:
        OSError: it is a link or a file, its parent is gone, or the disk refuses.
    """
    path.mkdir(exist_ok=True)
    if path.is_symlink():  # whoever has put it there would say where we write
        raise OSError(errno.ELOOP, "it is a symbolic link")


def check_place(path: Path) -> None:
    """Checks that directories can be made in a directory that may not exist yet.

    Raises:
        PruningError: the directory is not writable.
    """
    place = path.absolute()
    while not os.path.lexists(place):  # up to the first that exists
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise PruningError(f"cannot make a directory in {place}; choose another --output")
    _check_length(path)


def _check_length(path: Path) -> None:
    """Refuses a path of which a name, or the whole, is too long for its file system."""
    for part in (str(path), *path.parts):  # names below what does not exist are not looked at
        try:
            os.lstat(part)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                reason = "a name in it is too long; choose a shorter --output"
                raise PruningError(f"cannot write {path}: {reason}") from None


def make_directory(
    path: Path,
    files: Mapping[str, str],
    numbered: bool,
    fill: Callable[[Path], object],
) -> Path:
    """Makes a new directory with text files in it, by one rename of the complete thing.

    Args:
        path: the directory.
        files: the texts by file name.
        numbered: whether -2, -3 and so on may be appended where the path is taken.
        fill: writes more into the directory, which has a temporary name then.

    Raises:
        OSError: it exists, or the disk is full or refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Names to try if the path exists.
    numbers = (path.with_name(f"{path.name}-{number}") for number in count(2))
    with temporary(path, directory=True) as made:
        for name, text in files.items():
            write_file(made / name, text.encode())
        fill(made)
        for free in chain([path], numbers if numbered else []):
            if _renamed(made, free):
                sync_directory(path.parent)
                return free
        raise FileExistsError(errno.EEXIST, "it exists")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Makes a new directory by one rename, after the body has written its content.

    Yields:
        An empty directory beside it to write to; it is gone if the body fails.

    Raises:
        OSError: the path exists, or the disk is full or refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary(path, directory=True) as made:
        yield made
        for file in filter(Path.is_file, made.rglob("*")):
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        if not _renamed(made, path):
            raise FileExistsError(errno.EEXIST, "it exists")
        sync_directory(path.parent)


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON record into one safetensors file, whose metadata holds the record.

    Raises:
        OSError: the disk is full or refuses; a previous file stays as it was.
    """
    text = json.dumps(record)  # the digest covers it
    metadata = {"record": text, "sha256": _digest(tensors, text)}
    write_file(path, tensor_bytes(tensors, metadata))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the tensors (on the CPU) and the record that ``write_checkpoint`` wrote.

    Raises:
        PruningError: the file differs from what was written.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()  # record and digest
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["sha256"] == _digest(tensors, metadata["record"]):
            return tensors, json.loads(metadata["record"])
    except (SafetensorError, OSError, LookupError, TypeError, ValueError):
        pass
    raise PruningError(
        f"the checkpoint {path} is damaged; delete it and --resume again to start the run over"
    )


@contextmanager
def saving(path: Path, then: str = "") -> Iterator[None]:
    """Turns errors of writing in the body into a PruningError with what the disk says and a remedy.

    Args:
        path: what is written.
        then: continues the sentence after the remedy, " or choose another --output".
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()  # such as: no space left on device
        remedy = _REMEDIES.get(error.errno or 0, _OTHER)
    except SafetensorError as error:  # which hides what the disk says in a text
        reason = first_line(error)
        number = re.search(r"os error (\d+)", reason)
        remedy = _REMEDIES.get(int(number[1]) if number else errno.ENOSPC, _OTHER)
    else:
        return
    raise PruningError(f"cannot write {path}: {reason}; {remedy}{then}")


def _renamed(temporary: Path, path: Path) -> bool:
    """Renames a directory unless the path exists, also if it appears at the same moment."""
    if os.path.lexists(path):
        return False
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):  # it appeared meanwhile
            return False
        raise
    return True


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Computes the digest of a checkpoint's content, which reveals damage inside the file."""
    return hashlib.sha256(tensor_bytes(tensors) + text.encode()).hexdigest()
