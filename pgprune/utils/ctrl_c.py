"""What Ctrl-C does: it ends a command that imports, and stops a run after the current step."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def is_command() -> bool:
    """Tells whether this process is the command ``pgprune``, or ``python -m pgprune.commands``."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name in ("pgprune", "pgprune.exe") or sys.orig_argv[1:3] == ["-m", "pgprune.commands"]


def end_at_once() -> None:
    """Lets Ctrl-C end this process without a word while it imports packages.

    They would answer with a traceback. ``run_command`` takes Ctrl-C back.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as by nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def ctrl_c() -> Iterator[Callable[[], bool]]:
    """Records the first Ctrl-C in the body, for the yielded function; the second one interrupts."""
    pressed: list[int] = []  # a list, since the handler cannot rebind

    def note(number: int, frame: FrameType | None) -> None:
        if pressed:  # the second time
            raise KeyboardInterrupt
        pressed.append(number)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # only the main thread can handle signals
        yield lambda: False  # never pressed here
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
