"""The script behind docs/results.md: it resumes, shares cells, and reports."""

import json
import sys

import pytest

from helpers.experiments_toy import ROOT, load

BASELINES = ("none", "moving-average")


@pytest.fixture(scope="module")
def paper():
    """The script as a module, with one small table more."""
    script = load(ROOT / "benchmarks" / "paper.py")
    own = sys.modules["paper_cells"]
    cells = [own.ablation(timesteps=4, prune_rate=0.5, baseline=name) for name in BASELINES]
    values = ("metric", "learned", "kept")
    script.TABLES["tiny"] = own.Table("Tiny", cells, columns="baseline", values=values)
    yield script
    del script.TABLES["tiny"]


def test_every_table_is_made_of_cells_that_differ(paper):
    for name, table in paper.TABLES.items():
        assert table.cells, name
    every = paper.wanted(list(paper.TABLES))
    assert len(every) == len(set(every))
    assert len(every) < sum(len(table.cells) for table in paper.TABLES.values())
    settings_of = sys.modules["paper_cells"].settings_of
    learns = {cell: settings_of(cell) for cell in every if cell.name != "variance"}
    for cell, settings in learns.items():
        assert (settings["learning_rate"] is None) == (cell.name == "auto")
    assert {cell.seed for cell in paper.wanted(["error-bars"], seeds=2)} == {0, 1}


def test_a_cell_is_its_settings(paper):
    own = sys.modules["paper_cells"]
    settings = {"window": 3, "learning_rate": 0.1, "model": "builtin", "seed": 2, "masks": 4}
    cell = own.ablation(**settings)
    assert cell.method == "reinforce:window=3,masks=4,learning_rate=0.1"
    assert own.settings_of(cell) == own.DEFAULTS | settings
    assert own.ablation(**own.settings_of(cell)) == cell


def test_what_other_commands_write_into_a_page_stays(paper):
    page = "<!-- comparison -->\nkept\n<!-- end -->\n<!-- main -->\nold\n<!-- end -->\n"
    assert (
        paper.fill(page, [])
        == "<!-- comparison -->\nkept\n<!-- end -->\n<!-- main -->\n<!-- end -->\n"
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
    repeated = paper.read_records(tmp_path / "results.jsonl", paper.adapted)[1]
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
