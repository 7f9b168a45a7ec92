"""scripts/compare_methods.py: what it measures and what it shows."""

import shutil
import statistics

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.command import results
from helpers.comparison_toy import PAGE, lines
from pgprune.data.stream import evaluation_windows
from pgprune.evaluation.zero_shot import ZeroShot
from pgprune.experiments import method_runner as comparison_running
from pgprune.experiments.method_plots import hamming_distances, plot_all
from pgprune.experiments.method_records import read_records
from pgprune.experiments.method_report import tables
from pgprune.models.losses import model_perplexity
from pgprune.repair.fit import fit_repair
from pgprune.repair.repair import repaired
from pgprune.runs.results import perplexities
from pgprune.runs.run import Run

# ---------------------------------------------------------------- what is measured


def test_random_methods_have_all_seeds_and_failures_a_sentence(done):
    found = {(r["method"].partition(":")[0], r["repair"]) for r in read_records(done)}
    both = {"least-squares"}
    expected = {(name, how) for name in ("random", "sleb") for how in both | {"none"}}
    assert found == expected | {("flap", "own"), ("flap", "least-squares")}
    assert len(lines(done)) == 8 + 4 + 2 + 1  # random under two seeds, flap, sleb, sleb's failure
    (failed,) = [r for r in read_records(done) if "error" in r]
    assert (failed["method"], failed["rate"]) == ("sleb:method-samples=8", 0.5)
    assert "first 1 and the last 1 of 3 layers" in failed["error"]


def test_records_are_what_the_runs_say(done):
    for record in read_records(done):
        if "error" in record or record["repair"] == "least-squares":
            continue
        found = results(done / record["run"])
        assert record["perplexity"] == found["perplexity"]["pruned"]
        assert record["dense"] == found["perplexity"]["dense"]
        assert record["parameters"] == found["parameters"]
        assert record["seconds"] == found["method_cost"]["seconds"]
        assert record["memory_bytes"] == found["memory_beyond_weights_bytes"]
        assert (done / record["mask"]).exists()
        assert record["layers"] == 3


def test_a_repair_is_that_of_the_runs_own_mask_and_windows(done, script):
    record = next(r for r in read_records(done) if r["repair"] == "least-squares")
    run = Run.open(done / record["run"])
    problem = comparison_running._problem(run, record["seed"])
    mask = load_file(run.path / "mask.safetensors")["mask"]
    with repaired(
        problem.lm, fit_repair(problem.lm, mask, problem.stream.head(8), "least-squares")
    ):
        windows = evaluation_windows(problem.data, problem.tokenizer)
        expected = perplexities(problem.lm, {"mask": mask}, windows)["mask"]
    assert record["perplexity"] == pytest.approx(expected, rel=1e-12)


def test_zero_shot_tasks_are_done_by_the_models_that_the_perplexities_are_of(
    compare, script, tmp_path, monkeypatch
):
    models = []

    class Student:
        def __init__(self, model, tokenizer):
            models.append(model)

        def evaluate(self, task, limit):
            return ZeroShot(task, limit, 0, {"acc": 0.5}, {"acc": 0.1}, 0.25, 0.01)

    monkeypatch.setattr(comparison_running, "Harness", Student)
    for module in (comparison_running, script):
        monkeypatch.setattr(module, "load_tasks", lambda names, folder: names)
    few = (
        "--methods",
        "flap:method-samples=8",
        "--rates=0.33",
        "--limit=7",
        "--tasks",
        "quiz",
        "riddle",
    )
    assert compare(tmp_path, *few) == 0
    own, repaired = read_records(tmp_path)
    verdict = {"accuracy": 0.5, "verdict": "above chance"}
    assert own["zero_shot"] == repaired["zero_shot"] == {"quiz": verdict, "riddle": verdict}
    problem = comparison_running._problem(Run.open(tmp_path / own["run"]), 0)
    windows = evaluation_windows(problem.data, problem.tokenizer)["text"]
    for record, model in zip((own, repaired), models, strict=True):
        value = model_perplexity(model.double(), windows, 8)
        assert record["perplexity"]["text"] == pytest.approx(value, rel=1e-6)
    assert "| flap:method-samples=8 | own | forward | 50.00 | 50.00 |" in (
        tmp_path / "comparison.md"
    ).read_text().replace("**", "")


def test_runs_are_runs_of_the_ordinary_commands(done):
    record = read_records(done)[0]
    run = Run.open(done / record["run"])
    assert run.finished
    assert (run.path / "command.txt").read_text().startswith("python scripts/prune_baseline.py")


def test_the_agent_is_a_method_and_its_killed_run_goes_on(compare, tmp_path, monkeypatch):
    few = ("--methods", "reinforce:init-samples=8", "--rates=0.5", "--seeds=1")
    assert compare(tmp_path, *few) == 0
    (path,) = [path.parent for path in tmp_path.rglob("results.json")]
    expected = load_file(path / "mask.safetensors")
    assert results(path)["agent"] == "reinforce"
    (path / "results.json").unlink()  # as killed right before the end
    (tmp_path / "comparison.jsonl").unlink()
    assert compare(tmp_path, *few) == 0
    assert {r["repair"] for r in read_records(tmp_path)} == {"none", "least-squares"}
    for name, tensor in load_file(path / "mask.safetensors").items():
        assert torch.equal(tensor, expected[name])


# ---------------------------------------------------------------- what is shown


def test_the_table_is_made_of_the_results(done):
    text = tables(read_records(done))
    runs = [results(done / f"model/random-method-samples=8-0.33-seed{seed}") for seed in (0, 1)]
    values = [run["perplexity"]["pruned"]["text"] for run in runs]
    shown = "| random:method-samples=8 | none |"
    row = next(line for line in text.splitlines() if line.startswith(shown))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[1:4] == ["random:method-samples=8", "none", "forward"]
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    digits = 3 if mean < 10 else 2 if mean < 1000 else 0
    assert cells[4] == f"{mean:,.{digits}f} ± {deviation:,.{digits}f}"
    assert f"{runs[0]['parameters']['pruned']:,} / " in cells[7]
    assert cells[10] == "2"
    assert any(
        line.startswith("| sleb") and "| forward, depth |" in line and "| fails |" in line
        for line in text.splitlines()
    )
    assert "- sleb:method-samples=8 on model at 0.5: " in text


def test_accuracies_are_those_of_the_rate_that_has_them(done):
    def answered(record, quiz, riddle):
        shots = {"quiz": quiz, "riddle": riddle}
        return record | {
            "zero_shot": {
                task: {"accuracy": accuracy, "verdict": verdict}
                for task, (accuracy, verdict) in shots.items()
            }
        }

    luck = (0.26, "at chance")
    records = [record for record in read_records(done) if "error" not in record]
    assert "Zero-shot" not in tables(records)
    found = [
        answered(record, (0.4, "above chance") if record["method"] == "flap" else luck, luck)
        if record["rate"] == 0.5 and record["repair"] != "least-squares"
        else record
        for record in ({**one, "method": one["method"].partition(":")[0]} for one in records)
    ]
    text = tables(found, at_rate=0.33).partition("Zero-shot accuracy (%) at 0.5")[2]
    assert "| method | repair | type | quiz |" in text
    assert "| flap | own | forward | 40.00 |" in text
    assert "| random | none | forward | 26.00 ± 0.00 at chance |" in text
    assert "least-squares" not in text


def test_the_page_is_renewed_between_its_markers(compare, done, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert compare(done, "--report", f"--into={page}") == 0
    text = page.read_text()
    assert "old" not in text and text.endswith("<!-- other -->\nkept\n<!-- end -->\n")
    assert (done / "comparison.md").read_text() in text
    assert capsys.readouterr().out.count("\n") == 1
    assert compare(done, "--report", f"--into={page}") == 0
    assert page.read_text() == text


def test_records_without_their_runs_make_the_tables_too(compare, done, tmp_path):
    shutil.copy(done / "comparison.jsonl", tmp_path)
    assert compare(tmp_path, "--report") == 0
    assert (tmp_path / "comparison.md").read_text() == tables(read_records(done))
    assert not list(tmp_path.rglob("hamming*"))


def test_hamming_distances_are_those_of_the_masks(done):
    found = hamming_distances(done, read_records(done), "model", 0.33)
    ((pair, distances),) = found.items()
    assert pair == ("random:method-samples=8", "flap:method-samples=8")
    masks = [
        load_file(done / f"model/{name}-method-samples=8-0.33-seed0/mask.safetensors")["mask"]
        for name in ("random", "flap")
    ]
    units = 2 + 6  # kv groups and channels of a layer
    for layer in range(3):
        differ = sum(
            int(masks[0][layer * units + unit]) != int(masks[1][layer * units + unit])
            for unit in range(units)
        )
        assert distances[layer] == pytest.approx(differ / units)
    assert len(distances) == 3 and np.any(distances > 0)


def test_figures_are_drawn(done):
    pytest.importorskip("matplotlib")
    names = {path.name for path in plot_all(done)}
    assert names == {"perplexity-channels-heads.png", "perplexity-layers.png", "hamming-model.png"}
    assert all((done / "plots" / name).stat().st_size > 10_000 for name in names)
