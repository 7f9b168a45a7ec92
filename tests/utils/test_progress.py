"""Phases: what they say of themselves, and who hears of them."""

import threading

import pytest

from pgprune.utils import progress
from pgprune.utils.progress import Phase, duration, listening, note, phase, track


class Clock:
    """A clock that stands still until it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "clock", clock)
    return clock


def test_a_phase_says_how_far_it_is_and_what_is_left(clock):
    work = Phase("wanda-sp", 30, "layers")
    clock.now += 5
    assert str(work) == "wanda-sp: 0/30 layers, 0:05"
    clock.now += 5
    work.advance(10)
    assert str(work) == "wanda-sp: 10/30 layers, 0:20 left"
    clock.now += 5  # a slow step
    assert str(work) == "wanda-sp: 10/30 layers, 0:15 left"
    clock.now += 60
    assert str(work) == "wanda-sp: 10/30 layers, 0:00 left"


def test_without_a_total_it_says_the_time_taken(clock):
    loading, reading = Phase("loading builtin"), Phase("reading", unit="documents")
    clock.now += 75
    reading.advance(1234)
    assert str(loading) == "loading builtin: 1:15"
    assert str(reading) == "reading: 1,234 documents, 1:15"


def test_remaining_time_after_a_resume_counts_only_what_this_process_did(clock):
    work = Phase("finetuning", 2000, "updates", done=1000)
    clock.now += 10
    work.reach(1100, {"loss": "3.2500"})
    assert str(work) == "finetuning: 1,100/2,000 updates, 1:30 left, loss 3.2500"
    assert work.outcome == "finetuning took 0:10: 1,100/2,000 updates, loss 3.2500"


def test_a_listener_hears_of_nested_phases_and_notes(heard):
    with phase("method"):
        assert list(track("ab", "layers")) == ["a", "b"]
        note("half of it")
    assert heard.labels == ["method", "  layers"]
    assert heard.ended == [("layers", True), ("method", True)]
    assert heard.notes == ["half of it"]


def test_an_error_and_a_break_end_a_phase_that_is_not_completed(heard):
    with pytest.raises(KeyboardInterrupt), phase("method"):
        raise KeyboardInterrupt
    for _ in track(range(3), "layers"):
        break
    assert heard.ended == [("method", False), ("layers", False)]


def test_threads_and_silenced_work_are_not_heard(heard):
    thread = threading.Thread(target=note, args=["from a thread"])
    thread.start()
    thread.join()
    with listening(None), phase("cell"):
        note("from a cell")
    assert heard.labels == heard.notes == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "0:07"), (200, "3:20"), (3723, "1:02:03"), (59.6, "1:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
