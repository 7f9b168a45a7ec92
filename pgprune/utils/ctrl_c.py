"""What Ctrl-C does: it asks to stop after a step, or ends a process that has only begun."""

import signal
import threading
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


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process without a word in the body, which has nothing to lose.

    Packages that are being imported would answer it with a traceback. Where it is ignored, as under
    ``nohup``, it stays so.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or not _is_main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
