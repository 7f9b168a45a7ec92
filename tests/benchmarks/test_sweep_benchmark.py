"""benchmarks/sweep.py: what it runs and records, and the tables of its records."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from pgprune.utils.jsonl import read_lines

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sweep.py"


@pytest.fixture
def bench() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def record(kind: str, seed: int, rate: float | None, value: float = 20.0) -> dict[str, Any]:
    found = {"kind": kind, "model": "builtin", "seed": seed, "rate": rate, "tokens": 1000}
    if rate is None:
        return found
    return found | {
        "achieved": rate,
        "parameters": 10_000,
        "mask_evaluations": 40,
        "perplexity": {
            "dense": {"code": 10.0},
            "initial": {"code": 40.0},
            "pruned": {"code": value},
        },
    }


def test_tables_have_differences_seed_by_seed_and_all_costs(bench):
    records = [record("separate", seed, 0.3, 20.0 + seed) for seed in (0, 1)]
    records += [record("sweep", seed, 0.3, 20.2 + seed) for seed in (0, 1)]
    records += [record("sweep", seed, None) for seed in (0, 1)]
    text = bench["table"](records)
    assert "**builtin**, perplexity (dense: code 10.00)" in text
    assert (
        "| 0.3 | code | 40.00 | 20.50 | 20.70 | +0.0097 (+0.0095 to +0.0100) | yes, +0.32% |"
        in text
    )
    assert "| separate runs | 40 | 1,000 | 0, 1 |" in text
    assert "| sweep | 40 | 2,000 | 0, 1 |" in text
    assert "| sweep | – | – | none yet |" in bench["table"]([*records, record("nested", 0, 0.5)])


@pytest.mark.parametrize(
    ("kind", "value", "verdict"),
    [
        ("sweep", 20.5, "yes, +0.82%"),
        ("sweep", 21.0, "no, +1.63%"),
        ("nested", 21.0, "yes, +1.63%"),
        ("nested", 22.0, "no, +3.18%"),
        ("sweep", 19.0, "better, -1.71%"),
    ],
)
def test_a_difference_is_a_share_of_the_log_perplexity(kind, value, verdict, bench):
    text = bench["table"]([record("separate", 0, 0.3, 20.0), record(kind, 0, 0.3, value)])
    assert f"| {verdict} |" in text


def test_what_is_there_is_not_measured_again(bench, tmp_path, monkeypatch):
    started = []

    def train(output: Path, *words: object) -> None:
        started.append((output.name, words[-2:]))
        output.mkdir(exist_ok=True)
        (output / "config.yaml").write_text("{}")
        rate = {"requested": words[-1], "achieved": words[-1]}
        found = record("", 0, 0.3) | {"prune_rate": rate, "parameters": {"pruned": 10_000}}
        (output / "results.json").write_text(json.dumps(found))

    monkeypatch.setitem(bench["measure"].__globals__, "_train", train)
    words = [f"--output={tmp_path}", "--only", "separate", "--rates", "0.3", "0.5", "--seeds", "0"]
    assert bench["main"](words) == 0
    assert started[0] == ("builtin-separate-0.3-seed0", ("--prune-rate", 0.3))
    assert bench["main"](words) == 0, "which resumes what is finished"
    assert len(read_lines(tmp_path / "sweep.jsonl")) == 2
    assert (
        bench["main"]([f"--output={tmp_path}", str(tmp_path / "builtin-separate-0.3-seed0")]) == 0
    )
    assert len(read_lines(tmp_path / "sweep.jsonl")) == 2


def test_the_figure_needs_no_kind_in_particular(bench, tmp_path):
    records = [record("sweep", 0, rate) for rate in (0.3, 0.5)]
    assert bench["draw"](records, tmp_path / "sweep.png")
