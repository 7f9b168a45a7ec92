"""Every table of docs that has records is what the commands make of these records today."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "records"

# Records, their name in an output directory, the command, the page, and options.
PAGES = [
    ("results", "results", "benchmarks/paper.py", "results.md"),
    ("results", "results", "benchmarks/paper.py", "auto.md"),
    ("comparison", "comparison", "scripts/compare_methods.py", "results.md"),
    ("equal_data", "comparison", "scripts/compare_methods.py", "results.md", "--marker=equal-data"),
    ("experts", "comparison", "scripts/compare_methods.py", "experts.md", "--marker=experts"),
    (
        "repaired_experts",
        "comparison",
        "scripts/compare_methods.py",
        "experts.md",
        "--marker=repaired-experts",
    ),
    ("rivals", "comparison", "scripts/compare_methods.py", "real_model.md", "--marker=rivals"),
    ("benchmark", "benchmark", "scripts/benchmark_agents.py", "benchmark/README.md"),
    ("against_reinforce", "benchmark", "benchmarks/against_reinforce.py", "auto.md"),
    ("tuning", "benchmark", "benchmarks/tune_agents.py", "benchmark/tuning.md"),
    ("gpu", "gpu", "benchmarks/gpu.py", "performance.md"),
    ("gpu", "gpu", "benchmarks/gpu.py", "real_model.md"),
    ("real_model", "real_model", "benchmarks/real_model.py", "real_model.md"),
    ("gemma3", "real_model", "benchmarks/real_model.py", "gemma3.md"),
    (
        "gemma3_rivals",
        "comparison",
        "scripts/compare_methods.py",
        "gemma3.md",
        "--marker=gemma3-rivals",
    ),
    ("sweep", "sweep", "benchmarks/sweep.py", "sweep.md"),
    ("families", "families", "benchmarks/families.py", "families.md"),
    ("targets", "targets", "benchmarks/targets.py", "targets.md"),
    ("distillation", "distillation", "benchmarks/distillation.py", "recovery.md"),
]
MARKERS = {  # of each record file: the places that it fills
    "comparison": {"comparison"},
    "equal_data": {"equal-data"},
    "experts": {"experts"},
    "repaired_experts": {"repaired-experts"},
    "rivals": {"rivals"},
    "benchmark": {"benchmark"},
    "against_reinforce": {"against"},
    "tuning": {"tuning"},
    "gpu": {"gpu", "gpu-learning"},
    "real_model": {"real-model"},
    "gemma3": {"real-model"},
    "gemma3_rivals": {"gemma3-rivals"},
    "sweep": {"sweep"},
    "families": {"families"},
    "targets": {"targets"},
    "distillation": {"distillation"},
}


def without_blocks(page: str, names: set[str] | None) -> str:
    """The page with the named blocks emptied; None empties those that paper.py fills."""
    others = {"levelling", *(name for names in MARKERS.values() for name in names)}

    def empty(found: re.Match[str]) -> str:
        named = found[1] in names if names else found[1] not in others
        return f"<!-- {found[1]} -->\n<!-- end -->" if named else found[0]

    return re.sub(r"<!-- (\S+) -->\n.*?<!-- end -->", empty, page, flags=re.DOTALL)


@pytest.mark.parametrize("case", PAGES, ids=lambda case: f"{case[0]} in {case[3]}")
def test_a_page_is_made_of_its_records(case, tmp_path, monkeypatch):
    records, name, script, page, *options = case
    shutil.copy(RECORDS / f"{records}.jsonl", tmp_path / f"{name}.jsonl")
    written = (ROOT / "docs" / page).read_text()
    emptied = without_blocks(written, MARKERS.get(records))
    assert emptied != written
    copy = tmp_path / "page.md"
    copy.write_text(emptied)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # figures are tested elsewhere
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    asked = [f"--output={tmp_path}", "--report", f"--into={copy}", *options]
    monkeypatch.setattr(sys, "argv", [script, *asked])
    runpy.run_path(str(ROOT / script))["main"]()
    images = re.compile(r"\n!\[[\w ]+\]\(plots/[\w.]+\)\n")
    assert images.sub("", copy.read_text()) == images.sub("", written)


def test_every_record_file_has_its_page():
    assert {path.stem for path in RECORDS.glob("*.jsonl")} == {case[0] for case in PAGES}
