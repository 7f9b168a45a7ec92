"""benchmarks/tune_agents.py: equal effort, seeds of its own, and a record of all trials."""

import pytest
import yaml

from helpers.command import as_options
from helpers.experiments_toy import ROOT, load, record
from pgprune.errors import PruningError
from pgprune.experiments.records import read_records
from pgprune.experiments.scores import Scores


@pytest.fixture(scope="module")
def script():
    return load(ROOT / "benchmarks" / "tune_agents.py")


@pytest.fixture
def tune(script, arguments):
    """The command in this process."""
    names = ("calibration", "evaluation", "batch_size", "sequence_length", "dtype")
    few = {name: arguments[name] for name in names} | {"evaluation_windows": 4}
    few |= {"total_timesteps": 1, "seeds": 1, "tasks": f"{arguments['model']}:0.5"}
    options = as_options(few)
    return lambda output, *more: script.main([f"--output={output}", *options, *more], workers=0)


def test_every_combination_is_tried_on_other_seeds(tune, tmp_path, capsys):
    folder = tmp_path / "yaml"
    folder.mkdir()
    (folder / "auto.yaml").write_text(
        "default: {init-samples: 8}\nsearch: {population: [2, 4], deviation: [0.1, 0.2, 0.3]}\n"
    )
    page = tmp_path / "page.md"
    page.write_text("<!-- tuning -->\nold\n<!-- end -->\n")
    asked = ("--agents", "auto", f"--hyperparameters={folder}")
    assert tune(tmp_path / "out", *asked, f"--into={page}") == 0
    found = read_records(tmp_path / "out" / "benchmark.jsonl")
    assert {one["seed"] for one in found} == {100}
    tried = {
        (one["hyperparameters"]["population"], one["hyperparameters"]["deviation"]) for one in found
    }
    assert tried == {(p, d) for p in ("2", "4") for d in ("0.1", "0.2", "0.3")}
    assert {one["hyperparameters"]["init_samples"] for one in found} == {8}
    said = yaml.safe_load(capsys.readouterr().out)
    lowest = min(found, key=lambda one: one["curve"][-1]["loss"])["hyperparameters"]
    assert {name: str(value) for name, value in said["default"].items()} == {
        name: lowest[name] for name in ("population", "deviation")
    }
    text = page.read_text()
    assert "old" not in text and text.count("| auto |") == 6 and text.count("**") == 2


def test_an_unequal_effort_is_refused(tune, tmp_path):
    (tmp_path / "auto.yaml").write_text("search: {population: [2, 4]}\n")
    asked = ("--agents", "auto", f"--hyperparameters={tmp_path}")
    with pytest.raises(PruningError, match="auto.yaml has 2 combinations; every agent gets 6"):
        tune(tmp_path / "out", *asked)


def test_a_trial_that_failed_on_a_task_is_not_chosen(script):
    trials = {"auto:population=4": [3.0, 3.2], "auto:population=6": [3.1, 3.3]}
    found = [
        record(agent, task, 100, [5.0, loss])
        for agent, losses in trials.items()
        for task, loss in zip(("one:0.4", "two:0.4"), losses, strict=True)
    ]
    assert script.best(Scores(found)) == {"auto": "auto:population=4"}
    assert script.best(Scores(found[1:])) == {"auto": "auto:population=6"}
    assert "| auto | population=4 | – | 3.200 |" in script.table(Scores(found[1:]))
