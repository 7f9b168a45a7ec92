"""Shows the progress of a command: live in a terminal, as a line now and then elsewhere.

Progress goes to standard error. Results and notes go to standard output, which may be a file.
"""

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pgprune.errors import printable
from pgprune.utils.progress import Phase, listening

_REDRAW = 0.25  # seconds
_LINE_EVERY = 10.0  # seconds between two lines where there is no terminal
_YOUNG = 1.0  # seconds that an inner phase takes before it is shown: many are over sooner
_LONG = 5.0  # seconds after which an outer phase says how long it took
_WIDE = 200  # columns where there is no terminal


@contextmanager
def showing(quiet: bool = False, results: bool = False) -> Iterator[Console]:
    """Shows the progress of the body; yields the console for results, on standard output.

    Args:
        quiet: shows nothing.
        results: prints results even so.
    """
    # Nothing is cut to the 80 columns that rich assumes where there is no terminal.
    wide = None if _is_terminal(sys.stdout) else _WIDE
    console = Console(quiet=quiet and not results, highlight=False, width=wide)
    if quiet:
        with listening(None):
            yield console
        return
    view = ProgressView(console, sys.stderr, _is_terminal(sys.stderr))
    with ExitStack() as stack:
        stack.callback(view.close)
        stack.enter_context(listening(view))
        if view.live:
            stack.enter_context(redirect_stderr(_Above(view, sys.stderr)))
            if _is_terminal(sys.stdout):
                stack.enter_context(redirect_stdout(_Above(view, sys.stdout)))
        yield console


class ProgressView:
    """Shows the phases under way from a thread, so that work costs the same with it.

    Args:
        console: for notes.
        stream: for the progress; None shows nothing.
        terminal: whether it is one, which is redrawn unless it is a dumb one.

    Attributes:
        live: whether it is redrawn.
        line_open: whether others have printed a line on the terminal without its end.
    """

    def __init__(self, console: Console, stream: Any, terminal: bool) -> None:
        self._console = console
        self._stream = io.StringIO() if stream is None else stream
        # Without a terminal rich would draw all the same if a variable asks for colours in logs.
        self._screen = Console(file=self._stream, highlight=False)
        self.live = terminal and not self._screen.is_dumb_terminal
        self.line_open = False
        self._phases: list[Phase] = []
        self._drawn: Live | None = None
        self._lock = threading.RLock()
        self._closed = threading.Event()
        threading.Thread(target=self._show_now_and_then, daemon=True).start()

    def begin(self, phase: Phase) -> None:
        """Shows a phase from now on, within those that have begun and not ended."""
        self._phases.append(phase)

    def end(self, phase: Phase, completed: bool) -> None:
        """Removes a phase, and those in it whose loops were left early."""
        if phase not in self._phases:
            return
        place = self._phases.index(phase)
        with self._lock:
            del self._phases[place:]
        if place == 0:
            self.erase()  # the terminal is clean between outer phases
            if completed and phase.seconds >= _LONG:
                self.log(phase.outcome)

    def note(self, message: str) -> None:
        """Prints a line on the console."""
        self._console.print(printable(message, kept="\n"), soft_wrap=True, markup=False)

    def log(self, message: str) -> None:
        """Prints a line where the progress is, above it."""
        # Not by rich, which ends the process for a broken pipe.
        with self.above(), suppress(OSError, ValueError):
            print(printable(message, kept="\n"), file=self._stream, flush=True)

    def show(self) -> None:
        """Shows the present state, if there is something to show."""
        with self._lock:
            if not self._phases or self.line_open:
                return
            if not self.live:
                self.log(" > ".join(map(str, self._shown())))
                return
            if self._drawn is None:
                self._drawn = Live(
                    console=self._screen,
                    get_renderable=self._render,
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._drawn.start()
            self._drawn.refresh()

    @contextmanager
    def above(self) -> Iterator[None]:
        """Clears the terminal for lines that the body prints."""
        with self._lock:
            self.erase()
            yield

    def erase(self) -> None:
        """Clears the terminal until the next time that something is shown."""
        with self._lock:
            drawn, self._drawn = self._drawn, None
            if drawn is not None:
                with suppress(OSError, ValueError):
                    drawn.stop()

    def close(self) -> None:
        """Shows nothing any more, and leaves the terminal as it was."""
        self._closed.set()
        with self._lock:
            self._phases.clear()
            self.erase()

    def _show_now_and_then(self) -> None:
        # A reader that has gone ends the view, never the work.
        with suppress(OSError, ValueError):
            while not self._closed.wait(_REDRAW if self.live else _LINE_EVERY):
                self.show()

    def _shown(self) -> list[Phase]:
        """Returns the phases under way without inner ones that have only begun."""
        outer, *inner = self._phases
        return [outer, *(phase for phase in inner if phase.seconds >= _YOUNG)]

    def _render(self) -> Group | Text:
        if not self._phases:
            return Text()
        rows = Table.grid(padding=(0, 2))
        for column in ("label", "bar", "count", "time"):
            rows.add_column(overflow="ellipsis", no_wrap=column != "label")
        figures = list[Text]()
        for depth, phase in enumerate(self._shown()):
            label = Text(
                "  " * depth + printable(phase.label), "" if depth else "bold", no_wrap=True
            )
            width = min(24, self._screen.width // 4)
            bar = ProgressBar(total=phase.total, completed=phase.done, width=width)
            rows.add_row(label, bar if phase.total else "", phase.count, phase.time)
            # No markup: a process may say [00:12] and mean it.
            shown = phase.figures.items()
            figures += (Text.assemble((name, "dim"), f" {value}") for name, value in shown)
        return Group(rows, Columns(figures, padding=(0, 3))) if figures else Group(rows)


class _Above:
    """A stream of the terminal whose lines are printed above the view."""

    def __init__(self, view: ProgressView, stream: Any) -> None:
        self._view, self._stream = view, stream

    def write(self, text: str) -> int:
        with self._view.above():
            self._view.line_open = not text.endswith("\n")
            return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()
