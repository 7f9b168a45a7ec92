"""The view of a command: live in a terminal, in lines elsewhere, or nothing."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from pgprune.utils.progress import listening, note, phase, track
from pgprune.utils.progress_view import ProgressView, showing


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, highlight=False)


@pytest.fixture(params=[False, True])
def view(request):
    """A view on a terminal or a file."""
    view = ProgressView(console(request.param), console(request.param), live=request.param)
    with listening(view):
        yield view
    view.close()


def screen(view: ProgressView) -> str:
    return view._screen.file.getvalue()


def test_phases_within_phases_are_shown_with_figures(view):
    with phase("method wanda-sp") as outer, phase("layers", 30) as inner:
        inner.started -= 100
        inner.reach(10, {"loss": "3.2500"})
        outer.started -= 75
        view.show()
    for words in ("method wanda-sp", "1:15", "layers", "10/30", "3:20 left", "loss", "3.2500"):
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


def test_the_terminal_is_restored_after_an_error():
    view = ProgressView(console(True), console(True), live=True)
    with pytest.raises(KeyboardInterrupt), listening(view), phase("metric"):
        view.show()
        raise KeyboardInterrupt
    view.close()
    shown = screen(view)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor, hidden and shown


def test_a_reader_that_has_gone_ends_no_work(view):
    view._screen.file.close()
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
