"""scripts/train_agent.py as a user runs it: what a run leaves and what the options do."""

import csv
import re

import pytest
import torch
from safetensors.torch import load_file

from helpers.command import assert_same_run, results, train


def test_a_run_leaves_what_the_design_says(undisturbed):
    files = {str(path.relative_to(undisturbed)) for path in undisturbed.rglob("*")}
    assert {
        "config.yaml",
        "command.txt",
        "versions.txt",
        "progress.csv",
        "tensorboard",
        "checkpoint/checkpoint.safetensors",
        "mask.safetensors",
        "results.json",
        "plots/learning_curve.png",
        "plots/kept_shares.png",
    } <= files
    found = results(undisturbed)
    assert found["prune_rate"] == {"requested": 0.5, "achieved": 0.5}
    assert found["perplexity"].keys() >= {"dense", "initial", "masked", "pruned"}
    assert found["mask_evaluations"] == 4
    assert found["parameters"]["pruned"] == found["parameters"]["dense"] - (
        found["parameters"]["prunable"] // 2
    )
    steps = [int(row["step"]) for row in csv.DictReader((undisturbed / "progress.csv").open())]
    assert steps == list(range(1, 65))
    masks = load_file(undisturbed / "mask.safetensors")
    assert masks.keys() == {"mask", "initial", "best", "probabilities"}


def test_the_same_seed_gives_the_same_run(options, undisturbed, tmp_path):
    train(*options, f"--output={tmp_path / 'again'}")
    assert_same_run(undisturbed, tmp_path / "again")
    train(*options, f"--output={tmp_path / 'other'}", "--seed=1")
    masks = [load_file(run / "mask.safetensors") for run in (undisturbed, tmp_path / "other")]
    assert not torch.equal(masks[0]["probabilities"], masks[1]["probabilities"])


@pytest.mark.parametrize("granularity", ["heads", "channels", "blocks", "layers"])
@pytest.mark.parametrize("init", ["auto", "random-progressive"])
def test_every_granularity_runs(granularity, init, options, tmp_path):
    run = tmp_path / "run"
    few = [f"--granularity={granularity}", f"--init={init}", "--total-timesteps=1"]
    rate = "--prune-rate=0.34"  # one layer of three; the others round down too
    assert train(*options, *few, rate, f"--output={run}") == 0
    found = results(run)
    assert 0 < found["prune_rate"]["achieved"]
    assert found["perplexity"]["masked"]


def test_help_explains_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit):
        train("--help")
    out = capsys.readouterr().out
    options = re.findall(r"\n  (--[][a-z-]+)", out)
    assert {"--prune-rate", "--total-timesteps", "--learning-rate", "--resume"} <= set(options)
    assert len(re.findall(r"default[:)]", out)) == len(options)
