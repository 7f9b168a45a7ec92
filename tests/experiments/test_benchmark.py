"""scripts/benchmark_agents.py as a user runs it: what it measures, killed, repeated, misused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from helpers.command import Crash, results
from helpers.experiments_toy import FEW, ROOT, lines
from pgprune.errors import PruningError
from pgprune.experiments import runner
from pgprune.experiments.cells import RANDOM
from pgprune.experiments.records import read_records
from pgprune.experiments.scores import Scores
from pgprune.runs.progress import read_progress
from pgprune.runs.run import Run

AUTO, SEARCH = FEW[1:]


def recorded(output):
    return read_records(output / "benchmark.jsonl")


def test_every_cell_is_a_run_and_a_record(benchmarked):
    found = recorded(benchmarked)
    expected = {(agent, seed) for agent in (RANDOM, AUTO, SEARCH) for seed in (0, 1)}
    assert {(one["method"], one["seed"]) for one in found} == expected
    assert {one["task"] for one in found} == {"model:0.5"}
    for record in found:
        run = Run.open(benchmarked / record["run"])
        assert run.finished
        assert (run.path / "command.txt").read_text().startswith("python scripts/train_agent.py")
        own = results(run.path)
        assert record["perplexity"] == own["perplexity"]["pruned"]
        assert record["dense"] == own["perplexity"]["dense"]
        assert record["seconds"] == own["method_cost"]["seconds"]
        assert record["tokens"] == own["method_cost"]["tokens"]
        assert record["curve"] == own["learning_curve"]


def test_the_curve_is_that_of_the_run_with_its_start(benchmarked):
    record = next(one for one in recorded(benchmarked) if one["method"] == AUTO)
    curve = record["curve"]
    progress = read_progress(benchmarked / record["run"] / "progress.csv")
    looked = [loss for loss in progress["validation/loss"] if loss == loss]
    assert [point["loss"] for point in curve[1:]] == looked
    assert curve[0]["mask_evaluations"] == 0
    assert curve[-1]["mask_evaluations"] == record["mask_evaluations"] == 1
    for column in ("seconds", "tokens", "mask_evaluations"):
        values = [point[column] for point in curve]
        assert values == sorted(values)
    assert 0 < curve[0]["tokens"] and curve[-1]["seconds"] <= record["seconds"]


def test_random_masks_are_those_of_random_scores_on_the_same_batch(benchmarked):
    found = {(one["method"], one["seed"]): one for one in recorded(benchmarked)}
    run = Run.open(benchmarked / found[RANDOM, 1]["run"])
    assert run.sections["init"]["init"] == "random"
    prints = {
        Run.open(benchmarked / found[agent, 1]["run"]).sections["decided"]["text_fingerprint"]
        for agent in (RANDOM, AUTO, SEARCH)
    }
    assert len(prints) == 1  # of the validation batch
    losses = [found[RANDOM, seed]["curve"][0]["loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]
    assert Scores(list(found.values())).losses(RANDOM, "model:0.5") == losses


def test_the_report_is_written(benchmarked, benchmark, capsys):
    assert benchmark(benchmarked, "--report") == 0
    assert (benchmarked / "benchmark.md").read_text() in capsys.readouterr().out
    assert f"| {AUTO} |" in (benchmarked / "benchmark.md").read_text()


def test_what_is_measured_is_not_measured_again(benchmarked, benchmark, capsys):
    before = lines(benchmarked)
    assert benchmark(benchmarked, *FEW, "--seeds=2") == 0
    assert lines(benchmarked) == before
    assert "6 cells, 6 measured before" in capsys.readouterr().err


@pytest.mark.parametrize("agent", [AUTO, "a2c:a2c-masks=4,init-samples=8"])
def test_a_killed_run_ends_as_if_nothing_had_happened(agent, benchmark, tmp_path, monkeypatch):
    if agent != AUTO:
        pytest.importorskip("stable_baselines3")
    few = ("--agents", agent)
    assert benchmark(tmp_path / "whole", *few) == 0
    real, saved = Run.save_checkpoint, 0

    def crash_after_the_second(run, *state):
        nonlocal saved
        real(run, *state)
        saved += "init-random" not in str(run.path)
        if saved == 2:
            raise Crash

    monkeypatch.setattr(Run, "save_checkpoint", crash_after_the_second)
    with pytest.raises(Crash):
        benchmark(tmp_path / "killed", *few)
    half = '{"agent": "ra'  # the disk has lost the rest of the first record
    (tmp_path / "killed" / "benchmark.jsonl").write_text(half)
    assert benchmark(tmp_path / "killed", *few) == 0
    whole, killed = (recorded(tmp_path / name) for name in ("whole", "killed"))
    for one, other in zip(whole, killed, strict=True):
        assert one["perplexity"] == other["perplexity"]
        assert [p["loss"] for p in one["curve"]] == [p["loss"] for p in other["curve"]]


@pytest.mark.slow  # three processes, which load everything, and two of them twice
def test_killed_processes_leave_nothing_half_done(benchmark_options, tmp_path):
    script = ROOT / "scripts" / "benchmark_agents.py"
    command = [sys.executable, str(script), f"--output={tmp_path}", *benchmark_options, *FEW]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "benchmark.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(lines(tmp_path))
    assert 1 <= done < 3
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "3 cells, " in again.stderr and "3 cells, 0 measured" not in again.stderr
    assert {one["method"] for one in recorded(tmp_path)} == {RANDOM, AUTO, SEARCH}
    assert "| random masks |" in again.stdout


def test_what_fits_some_tasks_is_measured_there_and_the_status_says_so(
    benchmark, task, tmp_path, capsys
):
    blocks = f"{task}:blocks"
    agent = "random-search:candidates=4,init=stream-error,init-samples=8"
    assert benchmark(tmp_path, blocks, "--agents", agent) == 1
    assert f"- {agent} on" in capsys.readouterr().out.partition("Not measured:")[2]
    assert [("error" in one) for one in recorded(tmp_path)] == [False, False, False, True]


def test_failures_have_a_sentence_and_are_tried_again_only_if_asked(benchmark, tmp_path):
    agents = ("--agents", "auto:init-samples=1000")  # more windows than the text has
    for _ in range(2):
        with pytest.raises(PruningError, match="nothing of .*; the first cell failed: .* windows"):
            benchmark(tmp_path, *agents)
    assert [("error" in json.loads(line)) for line in lines(tmp_path)] == [False, True]
    with pytest.raises(PruningError, match="nothing of the benchmark"):
        benchmark(tmp_path, *agents, "--retry")
    assert "windows of 16 tokens" in json.loads(lines(tmp_path)[2])["error"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--agents", "alphago"], "'alphago' is unknown; choose all, or one of reinforce, auto"),
        (["--agents", "auto:seed=1"], "seed in agent 'auto:seed=1'"),
        (["--agents", "auto:deviation=-1"], "agent 'auto:deviation=-1': .*deviation"),
        (["--agents", "auto:nonsense=1"], "agent 'auto:nonsense=1': unrecognized arguments"),
        (["--agents", "auto", "auto:loss=kl"], "'auto:loss=kl' has another loss than random masks"),
        (["--agents", "sac:action=mask"], "action mask does not fit agent sac"),
        (["--tasks", "builtin"], "task 'builtin' is not MODEL:RATE or MODEL:RATE:GRANULARITY"),
        (["--tasks", "builtin:1.5"], "task 'builtin:1.5' is not MODEL:RATE"),
        (["--tasks", "builtin:0.5:atoms"], "task 'builtin:0.5:atoms' is not MODEL:RATE"),
        (["--tasks", "nowhere/:0.5"], "nowhere"),
        (["--recommended=atuo"], "agent 'atuo' is unknown"),
        (["--seeds=0"], "--seeds: must be a whole number at least 1"),
        (["--hyperparameters=nowhere"], "there is no directory nowhere"),
        (["--into=nowhere.md"], "there is no page nowhere.md"),
        (["--agents", "auto:init=layerwise-ppl"], "'auto:init=layerwise-ppl' fits no task: metric"),
        (["--report"], "nothing of the benchmark .* is measured yet; leave out --report"),
    ],
)
def test_mistakes_are_refused_before_any_work(asked, says, benchmark, tmp_path):
    with pytest.raises(PruningError, match=says):
        benchmark(tmp_path / "out", *asked)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--total-timesteps=2"], "was measured with total_timesteps 1, not 2"),
        (["--sequence-length=8"], "was measured with sequence_length 16, not 8"),
    ],
)
def test_another_configuration_is_refused(asked, says, benchmarked, benchmark):
    before = lines(benchmarked)
    with pytest.raises(PruningError, match=says):
        benchmark(benchmarked, *FEW, "--seeds=2", *asked)
    assert lines(benchmarked) == before


def test_scores_of_too_many_units_and_absent_packages_are_refused(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr("pgprune.agents.actions.MOST_SCORES", 3)
    with pytest.raises(PruningError, match="'ppo:action=score' fits no task: action score means"):
        benchmark(tmp_path / "out", "--agents", "ppo:action=score")
    monkeypatch.setattr(runner, "measure", lambda *_: pytest.fail("work"))
    with pytest.raises(pytest.fail.Exception, match="work"):  # 6 heads and 3 blocks are few enough
        monkeypatch.setattr("pgprune.agents.actions.MOST_SCORES", 14)
        benchmark(tmp_path / "blocks", "--agents", "ppo:action=score,channel-block=3")
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(PruningError, match="'trpo' fits no task: .* needs the package sb3_contrib"):
        benchmark(tmp_path / "out", "--agents", "trpo")
    assert not (tmp_path / "out").exists()


def test_another_model_of_the_same_name_is_refused(benchmarked, arguments, benchmark, tmp_path):
    shutil.copytree(arguments["model"], tmp_path / "model")
    with pytest.raises(PruningError, match="was measured with model '.*', not '.*'"):
        benchmark(benchmarked, "--tasks", f"{tmp_path / 'model'}:0.5", *FEW)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1]", b"{"])
def test_settings_that_are_none_are_refused(content, benchmark, tmp_path):
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(PruningError, match="settings.json"):
        benchmark(tmp_path, *FEW)


def test_a_directory_of_something_else_is_refused(benchmark, tmp_path):
    (tmp_path / "config.yaml").write_text("run:\n")
    with pytest.raises(PruningError, match="holds other things than a benchmark"):
        benchmark(tmp_path, "--agents", "reinforce")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_other_hyperparameters_of_an_agent_are_refused(benchmark, tmp_path):
    folder = tmp_path / "yaml"
    folder.mkdir()
    (folder / "auto.yaml").write_text("default:\n  population: 4\n  init-samples: 8\n")
    asked = ("--agents", "auto", f"--hyperparameters={folder}")
    assert benchmark(tmp_path / "out", *asked) == 0
    record = recorded(tmp_path / "out")[-1]
    assert record["hyperparameters"] == {"population": 4, "init_samples": 8}
    (folder / "auto.yaml").write_text("default:\n  population: 6\n  init-samples: 8\n")
    with pytest.raises(PruningError, match="was measured with population 4, not 6"):
        benchmark(tmp_path / "out", *asked)
