"""The script behind docs/recovery.md: what it makes of records, and a small run of all of it."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PAGE = "Before.\n<!-- recovery -->\nold\n<!-- end -->\nAfter.\n"


@pytest.fixture
def recovery(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import recovery

    yield recovery
    for name in ("recovery",):
        sys.modules.pop(name, None)


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def record(before: float, after: float) -> dict:
    return {
        "parameters": 1234,
        "perplexity": {"before": {"code": before}, "after": {"code": after}},
        "data": {"windows": 8, "sequence_length": 512},
        "updates": {"planned": 1},
        "lora": {"batch_size": 16, "learning_rate": 1e-3},
        "evaluation": {"sequence_length": 128, "windows": {"code": 400}},
        "seconds": 90.0,
    }


def test_the_table_is_made_of_what_is_there(recovery, tmp_path):
    run = tmp_path / "policy-gradient-0.5-2000-seed0"
    dense = {"parameters": {"dense": 2345}, "perplexity": {"dense": {"code": 11.5}}}
    write(run / "results.json", dense)
    for seed, (before, after) in enumerate([(31.0, 15.0), (33.0, 17.0)]):
        name = f"wanda-sp-of-policy-gradient-0.5-2000-seed{seed}-finetuned-4000x512-0.01"
        write(tmp_path / name / "finetuning.json", record(before, after))
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert recovery.main(["--output", str(tmp_path), "--report", "--into", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("Before.\n<!-- recovery -->\n| mask |")
    assert text.endswith("<!-- end -->\nAfter.\n")
    assert "| none (dense) | 2,345 | 11.50 | – |" in text
    assert "| Wanda-sp | 1,234 | 32.00 ± 1.41 | 16.00 ± 1.41 |" in text
    assert "| policy gradient | – | – | – |" in text
    assert "Seeds: Wanda-sp 2, policy gradient 0." in text
    assert "old" not in text


def test_nothing_measured_says_so(recovery, tmp_path, capsys):
    assert recovery.main(["--output", str(tmp_path), "--report"]) == 0
    assert capsys.readouterr().out == "Nothing is measured yet.\n\n"


@pytest.mark.slow
def test_a_small_run_is_done_once(recovery, tmp_path, capsys):
    pytest.importorskip("peft")
    arguments = ["--output", str(tmp_path), "--seeds", "1", "--timesteps", "4"]
    arguments += ["--samples", "32", "--sequence-length", "64"]
    assert recovery.main(arguments) == 0
    first = capsys.readouterr()
    assert first.err.count("$ ") == 3
    assert "| Wanda-sp | 1,990,560 |" in first.out
    assert recovery.main(arguments) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "$ " not in second.err
