"""Writes scalars as TensorBoard reads them, at once and in this process.

TensorBoard's own writer has a thread, whose errors (of a full disk) nobody can catch, and puts the
name of the machine into that of the file.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgprune.utils.files import make_folder
from pgprune.utils.temporary import open_new

_log = logging.getLogger(__name__)


class Board:
    """One file of events.

    Args:
        folder: of the run's event files; made if it is missing.
        step: the first that will be written; later ones of earlier files no longer count.

    Raises:
        ImportError: TensorBoard is not installed.
        OSError: the disk is full or refuses.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        make_folder(folder)
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{rest:09d}"  # in the order of their names
        self._writer = RecordWriter(open(folder / name, "xb", opener=open_new))  # noqa: SIM115
        self._add(step, time.time(), file_version="brain.Event:2")
        self._add(step, time.time(), session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, metrics: Mapping[str, float], wall_time: float) -> None:
        """Adds the values of a step by name."""
        values = [self._summary.Value(tag=k, simple_value=v) for k, v in metrics.items()]
        self._add(step, wall_time, summary=self._summary(value=values))

    def flush(self) -> None:
        """Hands everything to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Writes everything and closes the file."""
        self._writer.close()

    def _add(self, step: int, wall_time: float, **content: Any) -> None:
        event = self._event(step=step, wall_time=wall_time, **content)
        self._writer.write(event.SerializeToString())


def board(folder: Path, step: int) -> Board | None:
    """Returns a new file of events as ``Board``; None, with a note, without TensorBoard."""
    try:
        return Board(folder, step)
    except ImportError:
        _log.warning("no TensorBoard log: it needs pip install 'pgprune[plots]'")
        return None
