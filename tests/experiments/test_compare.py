"""scripts/compare_methods.py: what it measures and what it shows."""

import json
import os
import shutil
import statistics

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.command import results
from helpers.experiments_toy import lines
from pgprune import PruningError
from pgprune.data.stream import evaluation_windows
from pgprune.evaluation.zero_shot import ZeroShot
from pgprune.experiments import checks, variants
from pgprune.experiments.records import read_records
from pgprune.experiments.row_plots import hamming_distances, plot_all
from pgprune.experiments.row_tables import tables
from pgprune.losses.windows import model_perplexity
from pgprune.repair.fit import fit_repair
from pgprune.repair.repair import repaired
from pgprune.runs.finished import FinishedRun
from pgprune.runs.results import perplexities
from pgprune.runs.run import Run

PAGE = "Before.\n<!-- comparison -->\nold\n<!-- end -->\n<!-- other -->\nkept\n<!-- end -->\n"


def recorded(output):
    return read_records(output / "comparison.jsonl")


def test_random_methods_have_all_seeds_and_failures_a_sentence(compared):
    found = {(r["method"].partition(":")[0], r["repair"]) for r in recorded(compared)}
    both = {"least-squares"}
    expected = {(name, how) for name in ("random", "sleb") for how in both | {"none"}}
    assert found == expected | {("flap", "own"), ("flap", "least-squares")}
    # random under two seeds, flap, sleb, sleb's failure
    assert len(lines(compared)) == 8 + 4 + 2 + 1
    (failed,) = [r for r in recorded(compared) if "error" in r]
    assert (failed["method"], failed["rate"]) == ("sleb:method-samples=8", 0.5)
    assert "first 1 and the last 1 of 3 layers" in failed["error"]


def test_records_are_what_the_runs_say(compared):
    for record in recorded(compared):
        if "error" in record or record["repair"] == "least-squares":
            continue
        found = results(compared / record["run"])
        assert record["perplexity"] == found["perplexity"]["pruned"]
        assert record["dense"] == found["perplexity"]["dense"]
        assert record["parameters"] == found["parameters"]
        assert record["seconds"] == found["method_cost"]["seconds"]
        assert record["memory_bytes"] == found["memory_beyond_weights_bytes"]
        assert (compared / record["mask"]).exists()
        assert record["layers"] == 3


def test_a_repair_is_that_of_the_runs_own_mask_and_windows(compared):
    record = next(r for r in recorded(compared) if r["repair"] == "least-squares")
    run = Run.open(compared / record["run"])
    problem = variants.problem_of(run, record["seed"])
    mask = load_file(run.path / "mask.safetensors")["mask"]
    found = fit_repair(problem.lm, mask, problem.stream.head(8), "least-squares")
    with repaired(problem.lm, found):
        windows = evaluation_windows(problem.data, problem.tokenizer)
        expected = perplexities(problem.lm, {"mask": mask}, windows).values["mask"]
    assert record["perplexity"] == pytest.approx(expected, rel=1e-12)


def test_the_dense_model_is_evaluated_once_for_all_cells(compare, tmp_path):
    few = ("--seeds=1", "--rates", "0.33", "--repairs=none", "--methods", "magnitude", "random")
    assert compare(tmp_path, *few) == 0
    first, second = (FinishedRun.open(tmp_path / one["run"]).results for one in recorded(tmp_path))
    assert first["perplexity"]["dense"] == second["perplexity"]["dense"]
    assert first["evaluation"] == second["evaluation"]
    assert second["tokens"] == first["tokens"] // 2  # the mask alone
    assert "Standard errors over windows are at most " in (tmp_path / "comparison.md").read_text()


def test_zero_shot_tasks_are_done_by_the_models_that_the_perplexities_are_of(
    compare, tmp_path, monkeypatch
):
    models = []

    class Student:
        def __init__(self, model, tokenizer):
            models.append(model)

        def evaluate(self, task, limit):
            return ZeroShot(task, limit, 0, {"acc": 0.5}, {"acc": 0.1}, 0.25, 0.01)

    monkeypatch.setattr(variants, "Harness", Student)
    for module in (variants, checks):
        monkeypatch.setattr(module, "load_tasks", lambda names, folder: names)
    few = ("--methods", "flap:method-samples=8", "--rates=0.33")
    assert compare(tmp_path, *few, "--limit=7", "--tasks", "quiz", "riddle") == 0
    own, repaired = recorded(tmp_path)
    verdict = {"accuracy": 0.5, "stderr": 0.1, "verdict": "above chance"}
    assert own["zero_shot"] == repaired["zero_shot"] == {"quiz": verdict, "riddle": verdict}
    problem = variants.problem_of(Run.open(tmp_path / own["run"]), 0)
    windows = evaluation_windows(problem.data, problem.tokenizer)["text"]
    for record, model in zip((own, repaired), models, strict=True):
        value = model_perplexity(model.double(), windows, 8)
        assert record["perplexity"]["text"] == pytest.approx(value, rel=1e-6)
    page = (tmp_path / "comparison.md").read_text().replace("**", "")
    assert "| flap:method-samples=8 | own | forward | 50.00 | 50.00 |" in page


def test_runs_are_runs_of_the_ordinary_commands(compared):
    record = recorded(compared)[0]
    run = Run.open(compared / record["run"])
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
    assert {r["repair"] for r in recorded(tmp_path)} == {"none", "least-squares"}
    for name, tensor in load_file(path / "mask.safetensors").items():
        assert torch.equal(tensor, expected[name])


def test_the_table_is_made_of_the_results(compared):
    text = tables(recorded(compared))
    runs = [results(compared / f"model-0.33/random-method-samples=8/seed{seed}") for seed in (0, 1)]
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
    assert "- sleb:method-samples=8 on model:0.5: " in text


def test_accuracies_are_those_of_the_rate_that_has_them(compared):
    def answered(record, quiz, riddle):
        shots = {"quiz": quiz, "riddle": riddle}
        return record | {
            "zero_shot": {
                task: {"accuracy": accuracy, "verdict": verdict, "stderr": 0.02}
                for task, (accuracy, verdict) in shots.items()
            }
        }

    luck = (0.26, "at chance")
    records = [record for record in recorded(compared) if "error" not in record]
    assert "Zero-shot" not in tables(records)
    found = [
        answered(record, (0.4, "above chance") if record["method"] == "flap" else luck, luck)
        if record["rate"] == 0.5 and record["repair"] != "least-squares"
        else record
        for record in ({**one, "method": one["method"].partition(":")[0]} for one in records)
    ]
    text = tables(found, at_rate=0.33).partition("Zero-shot accuracy (%) at 0.5")[2]
    assert "| method | repair | type | quiz | mean of 2 |" in text
    assert "| flap | own | forward | 40.00 | 33.0 ± 1.4 |" in text
    assert "| random | none | forward | 26.00 ± 0.00 at chance | 26.0 ± 1.4 |" in text
    assert "least-squares" not in text


def test_the_page_is_renewed_between_its_markers(compare, compared, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert compare(compared, "--report", f"--into={page}") == 0
    text = page.read_text()
    assert "old" not in text and text.endswith("<!-- other -->\nkept\n<!-- end -->\n")
    assert (compared / "comparison.md").read_text() in text
    assert capsys.readouterr().out.count("\n") == 1
    assert compare(compared, "--report", f"--into={page}") == 0
    assert page.read_text() == text


def test_a_record_that_no_table_can_show(compare, tmp_path):
    line = '{"method": "flap", "task": "m:0.5", "seed": 0, "repair": "none", "perplexity": 5}'
    records = tmp_path / "comparison.jsonl"
    records.write_text(f"half a li\n{line}\n")
    said = "comparison.jsonl has a line that no table can show"
    with pytest.raises(PruningError, match=f"{said} .line 2, perplexity: 5.; remove it"):
        compare(tmp_path, "--report")
    other = line.replace("5}", '{"code": 5}}')
    records.write_text(f'{other[:-1]}, "model": "m"}}\n{other}')
    with pytest.raises(PruningError, match=f"{said} .line 2, model: missing.; remove it"):
        compare(tmp_path, "--report")


@pytest.mark.parametrize("value", ["1e400", "NaN", "9" * 400, "true", "-1", "0", '"5"'])
def test_a_perplexity_that_is_none_is_named_by_its_line(value, compare, compared, tmp_path):
    lines = (compared / "comparison.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"perplexity": {"code": "?"}})
    (tmp_path / "comparison.jsonl").write_text("\n".join(lines).replace('"?"', value))
    with pytest.raises(PruningError, match=r"line 2, perplexity: \{"):
        compare(tmp_path, "--report")


def test_a_pipe_in_the_place_of_the_records_is_refused(compare, tmp_path):
    os.mkfifo(tmp_path / "comparison.jsonl")
    with pytest.raises(PruningError, match="comparison.jsonl: it is no file; move it away"):
        compare(tmp_path, "--report")


def test_records_without_their_runs_make_the_tables_too(compare, compared, tmp_path):
    shutil.copy(compared / "comparison.jsonl", tmp_path)
    assert compare(tmp_path, "--report") == 0
    assert (tmp_path / "comparison.md").read_text() == tables(recorded(compared))
    assert not list(tmp_path.rglob("hamming*"))


def test_hamming_distances_are_those_of_the_masks(compared):
    found = hamming_distances(compared, recorded(compared), "model", 0.33)
    ((pair, distances),) = found.items()
    assert pair == ("random:method-samples=8", "flap:method-samples=8")
    masks = [
        load_file(compared / f"model-0.33/{name}-method-samples=8/seed0/mask.safetensors")["mask"]
        for name in ("random", "flap")
    ]
    units = 2 + 6  # kv groups and channels of a layer
    for layer, (one, other) in enumerate(zip(*(m.split(units) for m in masks), strict=True)):
        assert distances[layer] == pytest.approx(int((one != other).sum()) / units)
    assert len(distances) == 3 and np.any(distances > 0)


def test_figures_are_drawn(compared, painted):
    pytest.importorskip("matplotlib")
    names = {path.name for path in plot_all(compared, recorded(compared))}
    assert names == {"perplexity-channels-heads.png", "perplexity-layers.png", "hamming-model.png"}
    assert all((compared / "plots" / name).stat().st_size > 10_000 for name in names)
