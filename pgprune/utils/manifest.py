"""Digests of a directory's files in one file, written last: what it lists is whole and unchanged.

``manifest.json`` holds the SHA-256 of every file by its path below the directory, and one of these
lines. Whoever reads a file compares it first, so that damage and edits are never used in silence.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pgprune.errors import PruningError
from pgprune.utils.files import write_file

MANIFEST = "manifest.json"
_REMEDY = f"restore it from a copy, or delete {MANIFEST} if the change was meant"


@dataclass(frozen=True)
class Manifest:
    """What the files of a directory were when they were written.

    Attributes:
        folder: the directory.
        digests: SHA-256 in hexadecimal digits by path below the directory.
    """

    folder: Path
    digests: Mapping[str, str]

    @classmethod
    def write(cls, folder: Path, files: Iterable[Path]) -> None:
        """Writes the manifest of files in a directory, which completes it.

        Raises:
            OSError: the disk is full or refuses; a previous manifest stays as it was.
        """
        paths = {file.relative_to(folder).as_posix(): file for file in files}
        digests = {name: _digest(paths[name]) for name in sorted(paths)}
        record = {"sha256": digests, "sha256_of_these": _digest_of(digests)}
        write_file(folder / MANIFEST, (json.dumps(record, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """Reads the manifest of a directory; None where there is none.

        Raises:
            PruningError: it is damaged.
        """
        path = folder / MANIFEST
        if not os.path.lexists(path):
            return None
        try:
            if path.is_file():  # a pipe would be waited for
                record = json.loads(path.read_bytes())
                digests = record["sha256"]
                if record["sha256_of_these"] == _digest_of(digests):
                    return cls(folder, digests)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            pass
        raise PruningError(f"{path} is damaged; restore it from a copy")

    def file(self, name: str) -> Path | None:
        """Returns a file after comparing it; None where the directory never had one.

        Raises:
            PruningError: it is missing, differs, or came later than the manifest.
        """
        path = self.folder / name
        if fault := self._fault(name):
            raise PruningError(f"{path} {fault}; {_REMEDY}")
        return path if name in self.digests else None

    def check(self, names: Iterable[str]) -> None:
        """Compares files.

        Raises:
            PruningError: as ``file``.
        """
        for name in names:
            self.file(name)

    def faults(self) -> Iterator[tuple[str, str | None]]:
        """Yields every file of the manifest, and what is wrong with it, None if nothing is."""
        for name in self.digests:
            yield name, self._fault(name)

    def _fault(self, name: str) -> str | None:
        path = self.folder / name
        if name not in self.digests:
            there = os.path.lexists(path)
            return f"is not in {MANIFEST}, so it came later" if there else None
        if not path.exists():
            return "is missing"
        try:
            same = path.is_file() and _digest(path) == self.digests[name]
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return None if same else f"is damaged or was changed: its digest in {MANIFEST} is another"


def files_below(folder: Path, without: Iterable[str] = ()) -> list[Path]:
    """Lists the files below a directory, all but the manifest and those of some names."""
    left_out = {MANIFEST, *without}
    return [path for path in folder.rglob("*") if path.is_file() and path.name not in left_out]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
