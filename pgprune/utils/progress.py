"""Tells how far long work is: the code that works says it, and whoever listens shows it.

    for batch in track(batches, "perplexity on wikitext", unit="batches"): ...
    with phase("writing model.gguf"): ...

Phases nest: a method calls a metric, which goes through layers. A command listens by
``progress_view.showing``. Where nobody listens, nothing is shown; threads and processes that are
started have no listener.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

clock = time.monotonic


class Phase:
    """A piece of work under way.

    Args:
        label: names it.
        total: steps that it will take, None if that is not known.
        unit: names the steps, in the plural.
        done: steps done before it began, by a process that it resumes.

    Attributes:
        done: steps done.
        figures: what is shown beside the steps, by label.
        started: when it began, in seconds of ``clock``.
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "", done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self._first = done
        self.figures: dict[str, str] = {}
        self.started = self._reached = clock()

    def advance(self, steps: int = 1) -> None:
        """Adds steps done."""
        self.reach(self.done + steps)

    def reach(self, done: int, figures: Mapping[str, str] | None = None) -> None:
        """Says how many steps are done; figures that are absent keep their last value."""
        self.done, self._reached = done, clock()
        self.figures.update(figures or {})

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return clock() - self.started

    @property
    def rate(self) -> float:
        """Steps per second; 0 before the first."""
        seconds = self._reached - self.started
        return (self.done - self._first) / seconds if seconds > 0 else 0.0

    @property
    def count(self) -> str:
        """The steps in words, empty for a phase without steps."""
        if self.total is None and not self.done:
            return ""
        total = "" if self.total is None else f"/{self.total:,}"
        return f"{self.done:,}{total} {self.unit}".rstrip()

    @property
    def time(self) -> str:
        """The time left if it can be estimated, or else the time taken."""
        if self.total is None or not self.rate:
            return duration(self.seconds)
        # It shrinks between two steps, however long these take.
        left = (self.total - self.done) / self.rate - (clock() - self._reached)
        return f"{duration(max(left, 0))} left"

    @property
    def outcome(self) -> str:
        """What the phase has done and how long it took, in one line."""
        words = self._words(self.count)
        took = f"{self.label} took {duration(self.seconds)}"
        return f"{took}: {words}" if words else took

    def __str__(self) -> str:
        """Writes how far the phase is in one line."""
        return f"{self.label}: {self._words(self.count, self.time)}"

    def _words(self, *words: str) -> str:
        figures = (f"{label} {value}" for label, value in self.figures.items())
        return ", ".join(filter(None, [*words, *figures]))


class Listener(Protocol):
    """Gets to know what is under way."""

    def begin(self, phase: Phase) -> None:
        """Takes in a phase that begins, within those that have begun and not ended."""

    def end(self, phase: Phase, completed: bool) -> None:
        """Takes in the end of a phase; it is not completed after an error or a break."""

    def note(self, message: str) -> None:
        """Takes in a line that belongs to the results."""

    def log(self, message: str) -> None:
        """Takes in a line that belongs to the progress."""


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Lets a listener know of the progress in the body; None keeps the body silent."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def phase(label: str, total: int | None = None, unit: str = "", done: int = 0) -> Iterator[Phase]:
    """Makes the body a phase; the arguments are those of ``Phase``, which is yielded."""
    work, listener = Phase(label, total, unit, done), _listener.get()
    completed = False
    if listener is not None:
        listener.begin(work)
    try:
        yield work
        completed = True
    finally:
        if listener is not None:
            listener.end(work, completed)


def track(items: Iterable[T], label: str, total: int | None = None, unit: str = "") -> Iterator[T]:
    """Yields items, each a step of a phase.

    Args:
        items: to go through.
        label: names the phase.
        total: number of items; None takes their length, if they have one.
        unit: names the items, in the plural.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with phase(label, total, unit) as work:
        for item in items:
            yield item
            work.advance()


def note(message: str) -> None:
    """Tells the listener a line that belongs to the results."""
    if (listener := _listener.get()) is not None:
        listener.note(message)


def log(message: str) -> None:
    """Tells the listener a line that belongs to the progress."""
    if (listener := _listener.get()) is not None:
        listener.log(message)


def duration(seconds: float) -> str:
    """Writes a time span as people do: 0:07, 3:20, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def bars_as_phases() -> Iterator[None]:
    """Shows as phases what transformers shows in bars of its own while it loads."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    def bar(items: Iterable[Any], desc: str = "items", **_: Any) -> Iterable[Any]:
        return track(items, desc.rstrip("."))

    def hook(make: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return bar(*args, **options) if args else make(**options)

    gguf: Any = modeling_gguf_pytorch_utils
    own, before = gguf.tqdm, logging.set_tqdm_hook(hook)
    gguf.tqdm = bar  # it asks no hook
    try:
        yield
    finally:
        gguf.tqdm = own
        logging.set_tqdm_hook(before)
