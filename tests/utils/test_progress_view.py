"""The view of a command: live in a terminal, in lines elsewhere, or nothing."""

import io
import subprocess
import sys
import time

import pytest
from rich.console import Console

from pgprune.utils.progress import listening, note, phase, track
from pgprune.utils.progress_view import ProgressView, showing


class Terminal(io.StringIO):
    """Looks like a terminal."""

    def isatty(self) -> bool:
        return True


def view_on(stream: io.StringIO) -> ProgressView:
    return ProgressView(Console(file=io.StringIO(), width=60), stream, stream.isatty())


@pytest.fixture(params=[io.StringIO, Terminal])
def view(request, monkeypatch):
    """A view on a terminal or a file."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    view = view_on(request.param())
    with listening(view):
        yield view
    view.close()


def screen(view: ProgressView) -> str:
    return view._stream.getvalue()


def test_phases_within_phases_are_shown_with_figures(view):
    with phase("method wanda-sp") as outer, phase("layers", 30) as inner:
        inner.started -= 100
        inner.reach(10, {"loss": "3.2500", "cell": "[12:07] [/]"})
        outer.started -= 75
        view.show()
    for words in (
        "method wanda-sp",
        "1:15",
        "layers",
        "10/30",
        "3:20 left",
        "3.2500",
        "[12:07] [/]",
    ):
        assert words in screen(view)


def test_an_inner_phase_that_has_only_begun_is_not_shown(view):
    with phase("method wanda-sp"), phase("layers", 30):
        view.show()
    assert "wanda-sp" in screen(view) and "layers" not in screen(view)


def test_nothing_is_shown_between_phases(view):
    with phase("metric"):
        pass
    view.show()
    assert screen(view) == ""


def test_a_long_phase_says_how_long_it_took_and_a_failed_one_does_not(view):
    with phase("metric") as work:
        work.started -= 75
    with pytest.raises(KeyboardInterrupt), phase("repair") as work:
        work.started -= 75
        raise KeyboardInterrupt
    assert screen(view) == "metric took 1:15\n"


def test_a_loop_that_is_left_early_ends_with_the_phase_around_it(view):
    with phase("metric"):
        steps = track(range(3), "layers")
        next(steps)
    view.show()
    assert screen(view) == ""


def test_notes_are_results_and_are_printed_whole(view):
    with phase("metric"):
        view.show()
        note("runs/[name] " + 20 * "and more ")
    assert view._console.file.getvalue() == "runs/[name] " + 20 * "and more " + "\n"


def test_what_others_print_goes_above_the_view(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with showing(), phase("metric"):
        for _ in range(1000):
            time.sleep(0.01)
            if "metric" in terminal.getvalue():
                break
        print("a warning", file=sys.stderr)
    before, _, after = terminal.getvalue().partition("a warning\n")
    assert before.count("\x1b[?25l") == before.count("\x1b[?25h") >= 1  # the cursor is back
    assert "metric" in before and "metric" not in after
    assert sys.stderr is terminal


def test_the_terminal_is_restored_after_an_error(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    view = view_on(Terminal())
    with pytest.raises(KeyboardInterrupt), listening(view), phase("metric"):
        view.show()
        raise KeyboardInterrupt
    view.close()
    assert screen(view).count("\x1b[?25l") == screen(view).count("\x1b[?25h") == 1


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    view = view_on(Terminal())
    with listening(view), phase("metric"):
        view.show()
    view.close()
    assert screen(view) == "metric: 0:00\n"


def test_a_reader_that_has_gone_ends_no_work(view):
    view._stream.close()
    with phase("metric") as work:
        work.started -= 75
    view.close()


def test_quiet_shows_nothing_but_results_if_they_are_wanted(capsys):
    for results in (False, True):
        with showing(quiet=True, results=results) as out, phase("metric") as work:
            work.started -= 75
            note("a note")
            out.print("a result")
        shown = capsys.readouterr()
        assert shown.err == "" and shown.out == ("a result\n" if results else "")


def test_where_there_is_no_terminal_results_are_wide(capsys):
    with showing() as out:
        out.print("word " * 30)
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_results_come_also_without_standard_error(closed):
    code = (
        "from pgprune.utils.progress import phase; "
        "from pgprune.utils.progress_view import showing; import pgprune.utils.progress_view as v; "
        "v._LONG = 0\n"
        "with showing() as out:\n"
        "    with phase('metric'): pass\n"
        "    out.print('a result')"
    )
    words = ["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "a result\n")
