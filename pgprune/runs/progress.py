"""Logs the steps of a run: in ``progress.csv``, and in ``tensorboard/`` if that is installed."""

import csv
import io
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pgprune.runs.files import RunFile
from pgprune.utils.files import append_line

_log = logging.getLogger(__name__)


class _Row(NamedTuple):
    step: int
    metrics: dict[str, float]
    time: float


class ProgressLog:
    """Collects rows and appends them to the files of a run's directory in one go."""

    def __init__(self, directory: Path) -> None:
        self._csv = directory / RunFile.PROGRESS
        self._board_directory = directory / RunFile.TENSORBOARD
        self._board: Any = None
        self._rows: list[_Row] = []

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row; ``flush`` writes it."""
        self._rows.append(_Row(step, dict(metrics), time.time()))

    def flush(self) -> int:
        """Writes the rows added since the last time; returns the size of progress.csv in bytes.

        Raises:
            OSError: the disk is full or refuses; progress.csv is as before, the rows are kept.
            ValueError: a metric that the first step did not have.
        """
        size = self._csv.stat().st_size if self._csv.exists() else 0
        if not self._rows:
            return size
        # All rows or none are written, so that a retry adds each row once.
        append_line(self._csv, self._table(size).removesuffix("\n"))
        rows, self._rows = self._rows, []
        self._to_board(rows)
        return self._csv.stat().st_size

    def rewind(self, size: int) -> None:
        """Cuts progress.csv back to the bytes it had at a checkpoint."""
        if self._csv.exists() and self._csv.stat().st_size > size:
            os.truncate(self._csv, size)

    def close(self) -> None:
        """Writes everything and closes the files."""
        self.flush()
        if self._board:
            self._board.close()

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
        if self._board is None:
            # The first row after a resume is where an earlier process's events stop to count.
            self._board = _summary_writer(self._board_directory, purge_step=rows[0].step)
        if self._board:
            for row in rows:
                for name, value in row.metrics.items():
                    self._board.add_scalar(name, value, row.step, walltime=row.time)
            self._board.flush()


def read_progress(path: Path) -> dict[str, list[float]]:
    """Reads the columns of progress.csv by name; nan where a step has no value."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    # An empty cell is a figure that the step did not have.
    values = [[float(cell or "nan") for cell in row] for row in rows]
    return {name: [row[index] for row in values] for index, name in enumerate(header)}


def _summary_writer(directory: Path, purge_step: int) -> Any:
    """TensorBoard's writer, or False where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _log.warning("no TensorBoard log: it needs pip install 'pgprune[plots]'")
        return False
    return SummaryWriter(directory, purge_step=purge_step)
