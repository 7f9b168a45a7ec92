"""The progress of a long piece of work: live, in lines, or not at all."""

import io

import pytest
from rich.console import Console

from pgprune.runs.progress_view import ProgressView, duration, training_figures

METRICS = {
    "rollout/loss": 3.25,
    "rollout/reward": -3.25,
    "train/baseline": 3.5,
    "validation/best_loss": 3.0,
    "rollout/kept_share/heads": 0.6,
    "rollout/kept_share/channels": 0.601,
    "train/learning_rate": 0.1,
}
FIGURES = training_figures(METRICS)


class Clock:
    """A clock that stands still until it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, highlight=False)


def test_the_figures_of_training_are_those_that_people_watch():
    assert FIGURES == {
        "loss": "3.2500",
        "baseline": "3.5000",
        "reward": "-3.2500",
        "best": "3.0000",
        "heads kept": "60.0%",
        "channels kept": "60.1%",
    }


def test_lines_now_and_then_where_there_is_no_terminal():
    out, clock = console(), Clock()
    with ProgressView("reinforce", console=out, clock=clock) as view:
        for step in range(1, 31):
            view.update(2 * step, 100, FIGURES)
            clock.now += 1
    first, second, third, last = out.file.getvalue().splitlines()
    assert first.startswith("2/100 evaluations, ? left, loss 3.2500, baseline 3.5000")
    assert second.startswith("22/100 evaluations, 0:39 left")
    assert second.endswith("heads kept 60.0%, channels kept 60.1%, evaluations/s 2.0")
    assert third.startswith("42/100") and last.startswith("60/100")


def test_remaining_time_after_a_resume_counts_only_what_this_process_did():
    clock = Clock()
    view = ProgressView("finetuning", "updates", console=console(), clock=clock)
    view.update(1000, 2000, {})
    clock.now += 10
    view.update(1100, 2000, {})
    assert view.line() == "1,100/2,000 updates, 1:30 left, updates/s 10.0"


def test_live_in_a_terminal():
    out = console(terminal=True)
    with ProgressView("reinforce", console=out) as view:
        view.update(2, 100, FIGURES)
        view.note("a note")
        view.update(100, 100, {"loss": "2.7500"})
    shown = out.file.getvalue()
    for words in ("reinforce", "100/100 evaluations", "2.7500", "-3.2500", "60.1%", "a note"):
        assert words in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_it_ends_well_before_the_first_update(terminal):
    with ProgressView("reinforce", console=console(terminal)):
        pass


def test_quiet_prints_nothing(capsys):
    with ProgressView("reinforce", quiet=True) as view:
        view.update(2, 100, FIGURES)
        view.note("a note")
    assert capsys.readouterr().out == ""


def test_an_error_passes_through():
    with pytest.raises(KeyboardInterrupt), ProgressView("reinforce", console=console(True)):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "0:07"), (200, "3:20"), (3723, "1:02:03"), (59.6, "1:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
