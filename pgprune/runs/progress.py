"""Logs the steps of a run: in ``progress.csv``, and in ``tensorboard/`` if that is installed."""

import csv
import hashlib
import io
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pgprune.errors import PruningError
from pgprune.runs.files import RunFile
from pgprune.runs.tensorboard import Board, board
from pgprune.utils.files import append_line


class _Row(NamedTuple):
    step: int
    metrics: dict[str, float]
    time: float


class ProgressLog:
    """Collects rows and appends them to the files of a run's directory in one go."""

    def __init__(self, directory: Path) -> None:
        self._csv = directory / RunFile.PROGRESS
        self._board_directory = directory / RunFile.TENSORBOARD
        self._board: Board | None = None
        self._has_board = True  # until TensorBoard turns out to be absent
        self._rows: list[_Row] = []
        self._digest = hashlib.sha256()  # of what progress.csv holds

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row; ``flush`` writes it."""
        self._rows.append(_Row(step, dict(metrics), time.time()))

    def flush(self) -> dict[str, int | str]:
        """Writes the rows added since the last time.

        Returns:
            What ``rewind`` takes: size and digest of progress.csv.

        Raises:
            OSError: the disk is full or refuses; progress.csv is as before, the rows are kept.
            ValueError: a metric that the first step did not have.
        """
        size = self._csv.stat().st_size if self._csv.exists() else 0
        if self._rows:
            # All rows or none are written, so that a retry adds each row once.
            table = self._table(size)
            append_line(self._csv, table.removesuffix("\n"))
            self._digest.update(table.encode())
            size += len(table.encode())
            rows, self._rows = self._rows, []
            self._to_board(rows)
        return {"size": size, "sha256": self._digest.hexdigest()}

    def rewind(self, size: int, sha256: str | None = None) -> None:
        """Cuts progress.csv back to what it was at a checkpoint; as ``check``."""
        content = self.check(size, sha256)
        self._digest = hashlib.sha256(content[:size])
        if len(content) > size:
            os.truncate(self._csv, size)

    def check(self, size: int, sha256: str | None = None) -> bytes:
        """Returns the content of progress.csv, once it is shown to begin as it should.

        Args:
            size: bytes that it had.
            sha256: digest of them; None of earlier versions, which kept none.

        Raises:
            PruningError: it no longer holds them.
            OSError: the disk refuses.
        """
        try:
            content = self._csv.read_bytes()
        except FileNotFoundError:
            content = b""
        digest = hashlib.sha256(content[:size]).hexdigest()
        if len(content) < size or sha256 not in (None, digest):
            raise PruningError(
                f"{self._csv} is damaged: it does not begin with the {size:,} bytes that it had at "
                "the checkpoint; restore it from a copy, or delete it and checkpoint/ and --resume "
                "again to start the run over"
            )
        return content

    def close(self) -> None:
        """Writes everything and closes the files."""
        self.flush()
        if self._board:
            self._board.close()
            self._board = None

    def _table(self, size: int) -> str:
        """Formats the rows as CSV, under a header where the file has none yet."""
        text = io.StringIO()
        if size:
            with self._csv.open(newline="", encoding="utf-8") as file:
                # After a resume the columns keep the order of the first process.
                columns = next(csv.reader(file))
        else:
            columns = ["step", *self._rows[0].metrics]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        if not size:
            writer.writeheader()
        writer.writerows({"step": row.step, **row.metrics} for row in self._rows)
        return text.getvalue()

    def _to_board(self, rows: list[_Row]) -> None:
        if self._board is None and self._has_board:
            # The first row after a resume is where an earlier process's events stop to count.
            self._board = board(self._board_directory, rows[0].step)
            self._has_board = self._board is not None
        if self._board:
            for row in rows:
                self._board.add(row.step, row.metrics, row.time)
            self._board.flush()


def read_progress(path: Path) -> dict[str, list[float]]:
    """Reads the columns of progress.csv by name; nan where a step has no value."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    # An empty cell is a figure that the step did not have.
    values = [[float(cell or "nan") for cell in row] for row in rows]
    return {name: [row[index] for row in values] for index, name in enumerate(header)}
