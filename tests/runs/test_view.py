"""What a command shows: live, in lines, or not at all; and the final table."""

import io

import pytest
from rich.console import Console

from pgprune.runs import view as view_module
from pgprune.runs.view import TrainingView, duration, print_next, print_results

METRICS = {
    "rollout/loss": 3.25,
    "rollout/reward": -3.25,
    "train/baseline": 3.5,
    "validation/best_loss": 3.0,
    "rollout/kept_share/heads": 0.6,
    "rollout/kept_share/channels": 0.601,
    "train/learning_rate": 0.1,
}

RESULTS = {
    "prune_rate": {"requested": 0.4, "achieved": 0.4012},
    "parameters": {"dense": 4_000_000, "prunable": 2_000_000, "initial": 3_200_000}
    | {"pruned": 3_197_600},
    "perplexity": {
        "dense": {"code": 4.5, "prose": 12.0},
        "initial": {"code": 40.0, "prose": 1234.5},
        "masked": {"code": 10.0, "prose": None},
    },
    "mask_evaluations": 2000,
    "tokens": 2_048_000,
    "seconds": 200.4,
    "peak_memory_bytes": 300 * 2**20,
}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(view_module, "time", clock)
    return clock


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, highlight=False)


def test_lines_now_and_then_where_there_is_no_terminal(clock):
    out = console()
    with TrainingView("reinforce", console=out) as view:
        for step in range(1, 31):
            view.update(step, 2 * step, 100, METRICS)
            clock.now += 1
    first, second, third, last = out.file.getvalue().splitlines()
    assert first.startswith("2/100 evaluations, ? left, loss 3.2500, baseline 3.5000")
    assert second.startswith("22/100 evaluations, 0:39 left")
    assert second.endswith("heads kept 60.0%, channels kept 60.1%, evaluations/s 2.0")
    assert third.startswith("42/100") and last.startswith("60/100")


def test_remaining_time_after_a_resume_counts_only_what_this_process_did(clock):
    view = TrainingView("reinforce", console=console())
    view.update(500, 1000, 2000, METRICS)
    clock.now += 10
    view.update(550, 1100, 2000, METRICS)
    assert view.rate == 10
    assert view._progress() == ("1,100/2,000 evaluations", "1:30 left")


def test_live_in_a_terminal():
    out = console(terminal=True)
    with TrainingView("reinforce", console=out) as view:
        view.update(1, 2, 100, METRICS)
        view.note("a note")
        view.update(50, 100, 100, {"rollout/loss": 2.75})
    shown = out.file.getvalue()
    for words in ("reinforce", "100/100 evaluations", "2.7500", "-3.2500", "60.1%", "a note"):
        assert words in shown
    assert "0.1000" not in shown  # not among the figures


def test_ends_well_before_the_first_update():
    for terminal in (False, True):
        with TrainingView("reinforce", console=console(terminal)):
            pass


def test_quiet_prints_nothing(capsys):
    with TrainingView("reinforce", quiet=True) as view:
        view.update(1, 2, 100, METRICS)
        view.note("a note")
    assert capsys.readouterr().out == ""


def test_an_error_passes_through():
    with pytest.raises(KeyboardInterrupt), TrainingView("reinforce", console=console(True)):
        raise KeyboardInterrupt


def test_the_final_table():
    out = console()
    print_results(RESULTS, out)
    print_next(["python scripts/report.py runs/[name]"], out)
    text = out.file.getvalue()
    rows = {line.split("  ")[0].strip(): line for line in text.splitlines()}
    assert "4,000,000" in rows["dense"] and "100.00%" in rows["dense"]
    assert "1,234.500" in rows["one-shot mask of the metric"]
    assert "60.00%" in rows["one-shot mask of the metric"]
    assert "10.000" in rows["learned mask"] and "59.88%" in rows["learned mask"]
    assert "as shipped" not in text
    assert "40.12% of the prunable parameters (40.00% asked)" in text
    assert "3:20" in text and "300 MiB" in text
    assert text.endswith("Next\n  python scripts/report.py runs/[name]\n")


def test_a_repaired_model_has_its_own_row_and_an_equal_one_has_not():
    table = dict(RESULTS["perplexity"])
    for pruned, shown in ((table["masked"], False), ({"code": 9.0, "prose": 20.0}, True)):
        out = console()
        print_results({**RESULTS, "perplexity": {**table, "pruned": pruned}}, out)
        assert ("as shipped" in out.file.getvalue()) == shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "0:07"), (200, "3:20"), (3723, "1:02:03"), (59.6, "1:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
