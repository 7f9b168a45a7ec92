"""The script behind docs/results.md: it resumes, shares cells, and reports."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BASELINES = ("none", "moving-average")


@pytest.fixture
def paper(monkeypatch):
    """The script as a module, with one small table in place of its own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import cells
    import paper

    tiny = [cells.Cell(timesteps=4, prune_rate=0.5, baseline=name) for name in BASELINES]
    table = cells.Table("Tiny", tiny, columns="baseline", values=("metric", "learned", "kept"))
    monkeypatch.setitem(cells.TABLES, "tiny", table)
    yield paper
    for name in ("cells", "measure", "paper", "report", "variance"):
        sys.modules.pop(name, None)


def test_every_table_is_made_of_cells_that_differ(paper):
    for name, table in paper.TABLES.items():
        assert table.cells, name
    every = paper.wanted(list(paper.TABLES))
    assert len(every) == len(set(every))
    assert len(every) < sum(len(table.cells) for table in paper.TABLES.values())
    learns = [cell for cell in every if cell.task == "learn"]
    assert all((cell.learning_rate is None) == (cell.agent == "auto") for cell in learns)
    assert {cell.seed for cell in paper.wanted(["error-bars"], seeds=2)} == {0, 1}


def test_a_line_that_a_crash_left_unfinished_is_measured_again(paper, tmp_path):
    path = tmp_path / "results.jsonl"
    paper.append_record(path, {"cell": {"seed": 1}})
    path.write_bytes(path.read_bytes() + b'{"cell": {"se')
    paper.append_record(path, {"cell": {"seed": 2}})
    assert [record["cell"]["seed"] for record in paper.read_records(path)] == [1, 2]


def test_what_other_commands_write_into_a_page_stays(paper):
    from report import fill

    page = "<!-- comparison -->\nkept\n<!-- end -->\n<!-- main -->\nold\n<!-- end -->\n"
    assert (
        fill(page, []) == "<!-- comparison -->\nkept\n<!-- end -->\n<!-- main -->\n<!-- end -->\n"
    )


def test_a_run_resumes_and_reports(paper, assets, tmp_path, capsys):
    arguments = ["--assets", str(assets), "--output", str(tmp_path), "--only", "tiny"]
    arguments += ["--windows", "4", "--workers", "1"]
    assert paper.main(arguments) == 0
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert first["masks"]["metric"] == second["masks"]["metric"]
    assert first["learned_tokens"] == 4 * 1024
    assert first["masks"]["learned"]["kept"] == {"heads": 10, "channels": 430}

    (tmp_path / "results.jsonl").write_text(lines[0] + "\n" + lines[1][:100])
    assert paper.main(arguments) == 0
    assert "2 cells, 1 measured before" in capsys.readouterr().err
    repeated = paper.read_records(tmp_path / "results.jsonl")[1]
    assert repeated["masks"] == second["masks"]

    assert paper.main(["--output", str(tmp_path), "--only", "tiny", "--report"]) == 0
    table = capsys.readouterr().out
    assert "## Tiny (`--only tiny`)" in table
    assert f"{first['masks']['learned']['perplexity']['tinystories_1000_clean']:.2f}" in table

    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- tiny -->\nold\n<!-- end -->\nAfter.\n")
    arguments = ["--output", str(tmp_path), "--report", "--into", str(page)]
    assert paper.main(arguments) == 0
    assert page.read_text().startswith("Before.\n<!-- tiny -->\n")
    assert "| prune_rate |" in page.read_text()
    assert "old" not in page.read_text()
    assert page.read_text().endswith("|\n<!-- end -->\nAfter.\n")
