"""The script behind the table of stages: what it makes of records, and that nothing is redone."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def distillation(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import distillation

    yield distillation
    sys.modules.pop("distillation", None)


def done(way: str, after: float, **more) -> dict:
    """The record of a finetuning."""
    stage = {"stage": way, "tokens": 64_000, "seconds": 120.0}
    return {
        "perplexity": {"before": {"code": 20.0}, "after": {"code": after}},
        "stages": [stage],
        "parameters": 123,
        "training": {"learning_rate": 0.001},
        "kept": {"update": 4},
        "data": {"source": "builtin", "windows": 500, "sequence_length": 128},
        "validation": {"texts": {"training text": "builtin", "other text": "builtin:prose"}},
        "evaluation": {"windows": {"code": 8}},
        "versions": {},
    } | more


def run(folder: Path, seed: int) -> Path:
    path = folder / f"run{seed}"
    path.mkdir()
    rows = {"dense": {"code": 10.0}, "masked": {"code": 30.0}, "pruned": {"code": 20.0}}
    results = {"perplexity": rows, "model": "builtin", "prune_rate": {"requested": 0.4}}
    results |= {"seed": seed, "seconds": 60.0}
    (path / "results.json").write_text(json.dumps(results))
    return path


def test_the_table_is_made_of_what_is_there(distillation, tmp_path, capsys, monkeypatch):
    def command(script: str, source: Path, output_option: str, output: Path, *words: object):
        calls.append(words)
        found = done("finetuning", 18.0)
        if "--distill" in words:
            found = done("distillation", 14.142)
            found["stages"].insert(0, {"stage": "local", "tokens": 16_384, "seconds": 30.0})
            found["perplexity"]["local"] = {"code": 19.0}
        output.mkdir()
        (output / "finetuning.json").write_text(json.dumps(found))

    calls = []
    monkeypatch.setattr(distillation, "command", command)
    runs = [run(tmp_path, seed) for seed in (0, 1)]
    words = ["--output", str(tmp_path / "out"), "--tokens", "64k", "--run", *map(str, runs)]
    assert distillation.main(words) == 0
    assert len(calls) == 4
    shown = capsys.readouterr().out
    assert "| dense | – | – | 10.00 ± 0.00 | – |" in shown
    assert "| blocks by themselves | 16,384 | 0.5 | 19.00 ± 0.00 | 7% |" in shown
    assert "| blocks, then distilled | 64,000 | 2.0 | 14.14 ± 0.00 | 50% |" in shown
    assert "| LoRA on the text | 64,000 | 2.0 | 18.00 ± 0.00 | 15% |" in shown
    assert "builtin, prune rate 0.4, 123 parameters, seeds 0, 1:" in shown
    assert distillation.main(words) == 0
    assert len(calls) == 4
    assert capsys.readouterr().out == shown
    assert distillation.main(["--output", str(tmp_path / "out"), "--report"]) == 0
    assert capsys.readouterr().out == shown


def test_nothing_measured_says_so(distillation, tmp_path, capsys):
    assert distillation.main(["--output", str(tmp_path), "--report"]) == 0
    assert capsys.readouterr().out == "Nothing is measured yet.\n\n"
