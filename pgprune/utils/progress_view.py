"""Shows the progress of a command: live in a terminal, as a line now and then elsewhere.

Progress goes to standard error. Results and notes go to standard output, which may be a file.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pgprune.utils.progress import Phase, duration, listening

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
    wide = None if sys.stdout is None or sys.stdout.isatty() else _WIDE
    console = Console(quiet=quiet and not results, highlight=False, width=wide)
    if quiet:
        with listening(None):
            yield console
        return
    view = ProgressView(console)
    try:
        with listening(view):
            yield console
    finally:
        view.close()


class ProgressView:
    """Shows the phases under way from a thread, so that work costs the same with it.

    Args:
        console: for notes.
        screen: for the progress; standard error by default.
        live: whether it is a terminal that can be redrawn; None finds out.
    """

    def __init__(
        self, console: Console, screen: Console | None = None, live: bool | None = None
    ) -> None:
        self._console = console
        self._screen = screen or Console(stderr=True, highlight=False)
        if live is None:
            # Not rich's is_terminal, which variables for colours in logs set to true.
            terminal = sys.stderr is not None and sys.stderr.isatty()
            live = terminal and not self._screen.is_dumb_terminal
        self._redraws = live
        self._phases: list[Phase] = []
        self._live: Live | None = None
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
            if place == 0:  # what the command prints next finds the terminal clean
                self._erase()
            if place == 0 and completed and phase.seconds >= _LONG:
                self._print(f"{phase.label} took {duration(phase.seconds)}")

    def note(self, message: str) -> None:
        """Prints a line on the console, above the live view if there is one."""
        with self._lock:
            self._erase()
            self._console.print(message, soft_wrap=True, markup=False)

    def show(self) -> None:
        """Shows the present state, if there is something to show."""
        with self._lock:
            if not self._phases:
                return
            if not self._redraws:
                self._print(" > ".join(map(str, self._shown())))
                return
            if self._live is None:
                # What others print goes above the view, if it goes to this terminal.
                both = sys.stdout is not None and sys.stdout.isatty()
                self._live = Live(
                    console=self._screen,
                    get_renderable=self._render,
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=both,
                )
                self._live.start()
            self._live.refresh()

    def close(self) -> None:
        """Shows nothing any more, and leaves the terminal as it was."""
        self._closed.set()
        with self._lock:
            self._phases.clear()
            self._erase()

    def _show_now_and_then(self) -> None:
        # A reader that has gone ends the view, never the work.
        with suppress(OSError, ValueError):
            while not self._closed.wait(_REDRAW if self._redraws else _LINE_EVERY):
                self.show()

    def _erase(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError, ValueError):
                live.stop()

    def _print(self, line: str) -> None:
        """Prints a line on the screen; not by rich, which ends the process for a broken pipe."""
        with suppress(OSError, ValueError):
            print(line, file=self._screen.file, flush=True)

    def _shown(self) -> list[Phase]:
        """Returns the phases under way without inner ones that have only begun."""
        outer, *inner = self._phases
        return [outer, *(phase for phase in inner if phase.seconds >= _YOUNG)]

    def _render(self) -> Group | Text:
        if not self._phases:
            return Text()
        rows = Table.grid(padding=(0, 2))
        figures = list[str]()
        for depth, phase in enumerate(self._shown()):
            bar = ProgressBar(total=phase.total, completed=phase.done, width=24)
            label = Text("  " * depth + phase.label, "" if depth else "bold", overflow="ellipsis")
            rows.add_row(label, bar, phase.count, phase.time)
            figures += (f"[dim]{name}[/] {value}" for name, value in phase.figures.items())
        return Group(rows, Columns(figures, padding=(0, 3))) if figures else Group(rows)
