"""pgprune check: whole runs, exports and models are right, and what is damaged is named."""

import shutil

import pytest

from helpers.command import command
from helpers.finished_run import run_of_pattern
from pgprune.evaluation.check import findings
from pgprune.export.export import ExportConfig, export
from pgprune.runs.finished import FinishedRun


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> FinishedRun:
    """A run with an export in it."""
    run = run_of_pattern(tmp_path_factory.mktemp("whole"), "some")
    export(run, ExportConfig())
    return run


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole.path, tmp_path / "copy")


def test_a_whole_run_with_its_export_is_right(whole, capsys):
    assert command("check", whole.path) == 0
    said = capsys.readouterr().out
    assert "mask.safetensors: as it was written" in said
    assert "hf/model: " in said and "parameters, loads and computes" in said
    assert said.endswith("nothing is wrong\n")


@pytest.mark.parametrize("name", ["mask.safetensors", "results.json", "hf/model.safetensors"])
def test_what_is_damaged_is_named(copy, name, capsys):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert command("check", copy, "--quiet") == 1
    said = capsys.readouterr().out.splitlines()
    assert all(line.startswith("WRONG") for line in said)
    assert any(f"{name}: is damaged or was changed" in line for line in said)


def test_what_is_missing_is_named(copy):
    (copy / "mask.safetensors").unlink()
    wrong = {found.name: found.said for found in findings(str(copy)) if found.wrong}
    assert wrong["mask.safetensors"] == "is missing" and "is missing" in wrong["run"]


def test_an_unfinished_run_is_not_wrong(copy):
    (copy / "manifest.json").unlink()
    found = {found.name: found for found in findings(str(copy))}
    assert found["run"].said == "not finished" and not found["run"].wrong


def test_counts_that_do_not_fit(copy):
    run = FinishedRun.open(copy)
    run.results["parameters"]["pruned"] += 1
    run.write_results(run.results)
    (wrong,) = [found for found in findings(str(copy)) if found.wrong]
    assert "parameters, but results.json says" in wrong.said
