"""Runs end within their targets, and say so."""

import pytest
from transformers import AutoModelForCausalLM

from helpers.command import command, refused, results, train
from pgprune.runs.run import Run

TARGETS = ("--target", "parameters<=9500", "memory<=90KB@4x20")


@pytest.fixture(scope="module")
def unrated(likely):
    """The usual options without a prune rate."""
    return [word for word in likely if not word.startswith("--prune-rate")]


def check_targets(run, capsys):
    reached = results(run)["targets"]
    assert [each["target"] for each in reached] == list(TARGETS[1:])
    assert all(each["reached"] <= each["limit"] for each in reached)
    assert reached[0]["reached"] == results(run)["parameters"]["pruned"]
    assert Run.open(str(run)).sections["pruning"]["target"] == list(TARGETS[1:])
    said = capsys.readouterr().out
    assert "target 1" in said and TARGETS[1] in said


@pytest.mark.parametrize("agent", ["auto", "reinforce"])
def test_an_agent_ends_within_two_targets(agent, unrated, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(*unrated, f"--agent={agent}", *TARGETS, f"--output={run}") == 0
    check_targets(run, capsys)
    if agent == "auto":
        assert results(run)["repair"]["asked"] == "levels"
        assert Run.open(str(run)).sections["pruning"]["granularity"] == "heads+channels"


def test_an_export_with_equal_layers_stays_within_the_targets(unrated, tmp_path):
    run, out = tmp_path / "run", tmp_path / "equal"
    loose = ("--target", "parameters<=11500", "memory<=130KB@4x20")
    of_training = ("--total-timesteps", "--init-samples", "--checkpoint-every")
    words = [word for word in unrated if not word.startswith(of_training)]
    assert not command("prune_baseline", *words, "--method=wanda-sp", *loose, f"--output={run}")
    assert not command("export", run, "--uniform", f"--output={out}")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert sum(weight.numel() for weight in model.parameters()) <= 11500
    assert results(run)["targets"][0]["reached"] == results(run)["parameters"]["pruned"]
    assert len({layer.mlp.down_proj.in_features for layer in model.model.layers}) == 1


def test_a_target_out_of_reach_is_refused_before_a_run_exists(unrated, tmp_path, capsys):
    refused("train_agent", *unrated, "--target=parameters<=10", f"--output={tmp_path / 'run'}")
    assert "parameters<=10 cannot be met: the smallest" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
