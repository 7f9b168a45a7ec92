"""Turns Ctrl-C into a request to stop after the current step."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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
