"""CONTRIBUTING's example of a metric, added as it says, works wherever a metric does."""

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from helpers.command import as_options
from pgprune.commands.compare_methods import COMPARE
from pgprune.metrics import METRICS

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
NAME = "input-energy"


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file and the line that CONTRIBUTING shows."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip() and "import" not in line]
    assert len(lines) == 10
    file: dict[str, object] = {}
    exec(code, file)
    entry = re.search(r'`"([\w-]+)": (\w+),`', TEXT)
    assert entry and entry[1] == NAME
    monkeypatch.setitem(METRICS, NAME, file[entry[2]])


def run(command: str, monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["pgprune command", *map(str, words)])
    assert import_module(f"pgprune.commands.{command}").main() == 0


@pytest.fixture
def tiny(arguments) -> list[str]:
    names = ("model", "calibration", "evaluation", "batch_size", "sequence_length")
    few = {name: arguments[name] for name in names} | {"evaluation_windows": 8}
    return as_options(few)


def test_as_a_start(tiny, tmp_path, monkeypatch):
    words = [*tiny, f"--init={NAME}", "--total-timesteps=1", f"--output={tmp_path / 'run'}"]
    run("train_agent", monkeypatch, *words)
    assert f"init: {NAME}" in (tmp_path / "run" / "config.yaml").read_text()


def test_as_a_method(tiny, tmp_path, monkeypatch):
    run("prune_baseline", monkeypatch, *tiny, f"--method={NAME}", f"--output={tmp_path / 'run'}")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["method"] == NAME
    assert results["parameters"]["pruned"] < results["parameters"]["dense"]


def test_in_a_comparison(tiny, tmp_path, monkeypatch):
    words = [word.replace("--model=", "--models=") for word in tiny]
    words += ["--rates=0.5", "--repairs=none", "--methods", NAME, "wanda-sp"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # no figures, which take a while
    # A process of its own would not know the metric, so the cells are measured in this one.
    assert COMPARE.main([*words, f"--output={tmp_path}"], workers=0) == 0
    lines = (tmp_path / "comparison.jsonl").read_text().splitlines()
    assert {json.loads(line)["method"] for line in lines} == {NAME, "wanda-sp"}
    assert not [line for line in lines if '"error"' in line]
