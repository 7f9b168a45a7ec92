"""The benchmark of methods and repairs beside a forward pass: a run on few tokens, and mistakes."""

import json
import sys
from pathlib import Path

import pytest
import torch

from pgprune import PruningError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def around(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import around

    threads = torch.get_num_threads()
    yield around
    torch.set_num_threads(threads)
    sys.modules.pop("around", None)


def test_a_run_writes_a_record_and_a_table(around, tmp_path):
    output, page = tmp_path / "around", tmp_path / "page.md"
    page.write_text("Before.\n<!-- around -->\nold\n<!-- end -->\nAfter.\n")
    options = ["--model=builtin", "--windows=2", "--sequence-length=16", "--repeats=2"]
    options += ["--methods", "stream-error", "wanda-sp+bias", "--prune-rate=0.5"]
    around.main([*options, f"--output={output}", f"--into={page}"])
    report = json.loads((output / "around.json").read_text())
    assert list(report["methods"]) == ["stream-error", "wanda-sp+bias"]
    for found in report["methods"].values():
        assert len(found["seconds"]) == len(found["forward"]) == len(found["memory"]) == 2
        assert min(found["seconds"] + found["forward"]) > 0
    text = page.read_text()
    assert "| wanda-sp + bias |" in text and "builtin, 32 tokens" in text
    assert text.startswith("Before.") and text.endswith("<!-- end -->\nAfter.\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "wanda"], "--methods: 'wanda' is none"),
        (["--methods", "wanda-sp+glue"], "'wanda-sp\\+glue' is none; write a method or"),
        (["--clock=processor", "--threads=2"], "give --threads 1"),
        (["--into=absent.md"], "there is no page absent.md"),
    ],
)
def test_mistakes_are_refused_before_any_work(around, monkeypatch, options, message):
    monkeypatch.setattr(around, "Problem", None)
    with pytest.raises(PruningError, match=message):
        around.main(options)
