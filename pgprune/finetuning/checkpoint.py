"""The checkpoint beside the directory to come: safetensors with a JSON record, no pickle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pgprune.errors import PruningError
from pgprune.utils.files import read_checkpoint, saving, write_checkpoint
from pgprune.utils.process_ids import rank
from pgprune.utils.progress import note

State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors, and what JSON can hold."""


class Checkpoint:
    """A file that one stage of a command resumes from.

    Args:
        output: the directory that the command makes; the file is beside it.
        stage: part of its name; empty for the training.
        resume: whether the command resumes.

    Attributes:
        path: of the file.
    """

    def __init__(self, output: Path, stage: str, resume: bool) -> None:
        # Beside the new directory, which appears only when it is complete.
        self.path = output.parent / f"{output.name}.{stage}checkpoint.safetensors"
        self._resume = resume

    def refuse_left(self) -> None:
        """Refuses to start over where a killed command has left a checkpoint.

        Raises:
            PruningError: there is one, and the command does not resume.
        """
        if self.path.exists() and not self._resume:
            raise PruningError(
                f"{self.path} is left from a command that was killed; resume it with "
                "the same command and --resume, or delete it to start over"
            )

    def save(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Writes a state in the place of the last; of several processes, the main one does.

        Raises:
            PruningError: the disk is full or refuses.
        """
        if rank() > 0:
            return
        with saving(self.path, ", then repeat the same command with --resume"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_checkpoint(self.path, tensors, record)

    def load(self, asked: Mapping[str, Any]) -> State | None:
        """Reads the state to resume from; None where there is none.

        Args:
            asked: what the state's record must have under ``asked``.

        Raises:
            PruningError: the file is damaged, or of another command.
        """
        if not self._resume or not self.path.exists():
            return None
        tensors, record = read_checkpoint(self.path)
        different = [name for name, value in asked.items() if record["asked"].get(name) != value]
        if different:
            raise PruningError(
                f"the checkpoint {self.path} is of a command with another "
                f"{' and '.join(different)}; repeat that command, or delete the checkpoint"
            )
        return tensors, record

    def note_absence(self, other: "Checkpoint") -> None:
        """Says that neither this file nor another one is there to resume from, where that is so."""
        if self._resume and not self.path.exists() and not other.path.exists():
            note(f"there is no {self.path} yet, so training starts over")

    def remove(self) -> None:
        """Removes the file, if there is one."""
        self.path.unlink(missing_ok=True)
