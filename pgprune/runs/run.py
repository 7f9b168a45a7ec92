"""Keeps the directory of a run, which is whole at any instant, even after ``kill -9``.

The directory appears by one rename, complete with its configuration. Every file in it is replaced
by renaming a finished one, so that at any instant each is whole or absent, and a checkpoint that
fails leaves the previous one as it was. ``progress.csv`` grows in place; each checkpoint records
how much of it counts, and its digest, and resuming cuts off the rest. The results come with a
manifest of all files, which goes before a run is resumed. One process at a time writes to a run.
"""

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from pgprune.errors import PruningError
from pgprune.runs.files import LISTED, RUNS, RunFile, check_output, is_resumable
from pgprune.runs.lock import locked
from pgprune.runs.progress import ProgressLog
from pgprune.runs.results_file import read_results
from pgprune.runs.versions import versions
from pgprune.utils.files import (
    make_directory,
    make_folder,
    read_checkpoint,
    read_text,
    saving,
    tensor_bytes,
    write_checkpoint,
    write_file,
)
from pgprune.utils.jsonl import finite
from pgprune.utils.manifest import MANIFEST, Manifest, files_below
from pgprune.utils.options import C, Config, dump_yaml, from_dict, load_yaml

_LOCK = ".lock"


class Run:
    """A run's directory, made by ``Run.create`` or ``Run.open``; close it or use it in a ``with``.

    Attributes:
        path: the directory.
        sections: what config.yaml holds, as plain values.
        resumable: whether an unfinished run can be resumed, as errors then advise.
    """

    settings_file: ClassVar[str] = RunFile.CONFIG

    def __init__(self, path: Path, sections: dict[str, dict[str, Any]]) -> None:
        self.path = path
        self.sections = sections
        self.resumable = is_resumable(sections)
        self._progress = ProgressLog(path)
        self._checkpoint = path / RunFile.CHECKPOINT
        self._lock: ExitStack | None = None

    @classmethod
    def create(
        cls,
        output: str | None,
        configs: Mapping[str, Config | Mapping[str, Any]],
        command: Sequence[str],
        default_name: str,
        fill: Callable[[Self], object] = lambda _: None,
    ) -> Self:
        """Makes a new run's directory with config.yaml, command.txt and versions.txt in it.

        Args:
            output: the directory, or None for a free name in runs/.
            configs: the sections of config.yaml: settings, and what was decided from them.
            command: the words of the command.
            default_name: the name in runs/, with -2, -3 and so on where it is taken.
            fill: writes the whole run; without it the directory appears with these files only.

        Raises:
            PruningError: the directory exists or cannot be made.
        """
        # The directory appears whole, by one rename: a kill leaves no run without settings.
        check_output(output)
        path = Path(output) if output is not None else RUNS / default_name
        files: dict[str, str] = {
            cls.settings_file: dump_yaml(configs),
            RunFile.COMMAND: shlex.join(command) + "\n",
            RunFile.VERSIONS: "".join(
                f"{name} {version}\n" for name, version in versions().items()
            ),
        }
        with saving(path, " or choose another --output"):
            numbered = output is None
            made = make_directory(path, files, numbered, lambda folder: fill(cls.open(folder)))
            return cls.open(made)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens the directory of an existing run, finished or not.

        Raises:
            PruningError: the directory is missing, is no run, or has an unreadable configuration.
        """
        path = Path(path)
        config = path / cls.settings_file
        if not path.is_dir():
            raise PruningError(f"there is no run at {path}; give the directory of a run")
        if not config.exists() and (path / RunFile.SWEEP).exists():
            raise PruningError(f"{path} is a sweep; give one of the runs in it, such as {path}/0.3")
        if not config.exists():
            raise PruningError(f"{path} is not a run: it has no {cls.settings_file}")
        return cls(path, load_yaml(read_text(config), str(config)))

    def config(self, section: str, config: type[C]) -> C:
        """Reads a section of config.yaml as its dataclass.

        Raises:
            PruningError: the section is absent, or has a setting that is unknown or wrong.
        """
        source = f"{self.path / self.settings_file}, section {section!r}"
        if section not in self.sections:
            raise PruningError(f"{source} is absent: this is not a run of this command")
        return from_dict(config, self.sections[section], source)

    @property
    def finished(self) -> bool:
        """Whether the results of the whole run are written, not those of an interrupted one.

        Raises:
            PruningError: they are damaged.
        """
        # An interrupted run is evaluated as well, and says ``completed: false``.
        results = read_results(self.path)
        return results is not None and bool(results.get("completed", True))

    @property
    def has_lock(self) -> bool:
        """Whether a process writes to the run, or was killed while it did."""
        return (self.path / _LOCK).exists()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self._checkpoint.exists()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs one step; it reaches the disk with the next checkpoint or ``close``.

        Args:
            step: the number of the step, each logged once.
            metrics: values by name. The first step names them all (nan where there is none yet).
        """
        self._progress.add(step, metrics)

    def save_checkpoint(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replaces the checkpoint (tensors, and a state for JSON) and writes progress.csv up to it.

        Raises:
            PruningError: the disk is full or refuses; the previous checkpoint stays.
        """
        with self.saving():
            record = {
                "state": dict(state),
                # Both decide on resuming: whether it is this run, and where its log ends.
                "fingerprint": self._fingerprint(),
                "progress": self._progress.flush(),
            }
            make_folder(self._checkpoint.parent)
            write_checkpoint(self._checkpoint, tensors, record)
            # For people only: after a kill it may be one checkpoint behind.
            readable = json.dumps(record, indent=2) + "\n"
            write_file(self._checkpoint.with_name("state.json"), readable.encode())

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Reads the checkpoint and cuts progress.csv back to it.

        Returns:
            Tensors (on the CPU) and state as saved, or None where there is no checkpoint yet.

        Raises:
            PruningError: the checkpoint is damaged, or belongs to another model or other settings;
                or progress.csv is not what it was at the checkpoint.
        """
        if (found := self.read_checkpoint()) is None:
            # Killed before the first checkpoint: what was logged is done again.
            progress: dict[str, Any] = {"size": 0}
        else:
            progress = found[1]["progress"]
        with self.saving():
            # Steps after the checkpoint are repeated, and logged then.
            self._progress.rewind(**progress)
            # Of results of an interrupted run, which are about to be replaced.
            (self.path / MANIFEST).unlink(missing_ok=True)
        return None if found is None else (found[0], found[1]["state"])

    def read_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Reads the checkpoint as ``load_checkpoint``, but changes nothing.

        Returns:
            Tensors (on the CPU) and the record with ``state`` and ``progress``, or None.
        """
        if not self.has_checkpoint:
            return None
        tensors, record = read_checkpoint(self._checkpoint)
        # Someone has edited config.yaml, or copied a checkpoint from another run.
        if record["fingerprint"] != self._fingerprint():
            raise PruningError(
                f"the checkpoint {self._checkpoint} is of another model or other settings than "
                f"{self.path / RunFile.CONFIG}; delete it and --resume again to start the run over"
            )
        progress = record.setdefault("progress", {"size": record.get("progress_bytes", 0)})
        with self.saving():
            self._progress.check(**progress)
        return tensors, record

    def write_mask(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Writes mask.safetensors: ``mask`` and what belongs to it, and texts by name.

        Raises:
            PruningError: the disk is full or refuses.
        """
        with self.saving():
            write_file(self.path / RunFile.MASK, tensor_bytes(tensors, metadata))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Writes results.json and the manifest of all files: with them the run is finished.

        Args:
            results: plain values; numbers that are not finite become null. ``completed`` False
                marks a run that was interrupted, evaluated all the same, and can be resumed.

        Raises:
            PruningError: the disk is full or refuses.
        """
        # So that results whose manifest is gone are told from those of versions without one.
        told = finite({**results, "manifest": MANIFEST})
        text = json.dumps(told, indent=2, allow_nan=False) + "\n"
        with self.saving():
            self._progress.flush()
            write_file(self.path / RunFile.RESULTS, text.encode())
            files = [file for name in LISTED if (file := self.path / name).exists()]
            Manifest.write(self.path, files + files_below(self.path / RunFile.PLOTS))

    def lock(self) -> None:
        """Keeps other processes from writing to the run until it is closed.

        Raises:
            PruningError: another process is writing to it.
        """
        if self._lock is None:
            lock = ExitStack()
            lock.enter_context(locked(self.path / _LOCK, self.path))
            self._lock = lock

    def close(self) -> None:
        """Writes what is logged but not yet on the disk, and lets others write."""
        lock, self._lock = self._lock or ExitStack(), None
        with lock, self.saving():
            self._progress.close()

    def __enter__(self) -> Self:
        self.lock()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Turns what the disk refuses, in its ``with``, into a ``PruningError`` with a remedy."""
        resume = f"resume with --resume {shlex.quote(str(self.path))}"
        then = f"{resume}; what was saved before is intact" if self.resumable else "start a new run"
        try:
            with saving(self.path, f", then {then}"):
                yield
        except PruningError:
            if (self.path / self.settings_file).exists():
                raise
            raise PruningError(
                f"{self.path} was removed while a command wrote to it; start a new run"
            ) from None

    def _fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.sections, sort_keys=True).encode()).hexdigest()
