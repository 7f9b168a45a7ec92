"""Runs over experts: agents learn them as any unit, and equal counts export as a stock model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.command import as_options, command, refused, results, train
from helpers.finished_run import numbers
from helpers.tiny import tiny_arguments, tokens
from pgprune.runs.any_model import load_any
from pgprune.runs.finished import FinishedRun

SHORT = {"evaluation_windows": 8, "init_samples": 16, "total_timesteps": 1}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Options of a tiny mixture with four experts in a layer, two of them for each token."""
    arguments = tiny_arguments(tmp_path_factory.mktemp("mixture"), "mixtral")
    return [*as_options(arguments | SHORT), "--granularity=experts"]


OTHERS = ("cma-es --action=score", "sac --action=score", "td3 --action=score", "ppo", "a2c", "trpo")


@pytest.mark.parametrize(
    "agent",
    ["auto", "reinforce", "evolution", *(pytest.param(a, marks=pytest.mark.slow) for a in OTHERS)],
)
def test_a_run_exports_a_stock_model_with_fewer_experts(agent, mixture, tmp_path):
    run = tmp_path / "run"
    assert train(*mixture, *f"--agent={agent}".split(), f"--output={run}", "--export=hf") == 0
    found = results(run)
    assert found["scope"] == "uniform"
    assert found["perplexity"]["pruned"] == pytest.approx(found["perplexity"]["masked"], rel=1e-6)
    loaded = AutoModelForCausalLM.from_pretrained(
        run / "hf", dtype=torch.float64, experts_implementation="eager"
    )
    assert type(loaded).__name__ == "MixtralForCausalLM"
    assert (loaded.config.num_experts, loaded.config.num_experts_per_tok) == (2, 2)
    assert numbers(run / "hf") == found["parameters"]["pruned"]
    with torch.no_grad():
        error = loaded(tokens()[:, :9] % 26).logits
        error = error - load_any(str(run), dtype="float64").model(tokens()[:, :9] % 26).logits
    assert float(error.abs().max()) <= 1e-4  # the export is in float32


@pytest.mark.parametrize("agent", ["auto", "reinforce"])
def test_a_run_exports_a_stock_model_with_fewer_channels_of_experts(
    agent, mixture, tmp_path, capsys
):
    run = tmp_path / "run"
    options = ["--granularity=experts+channels", "--prune-rate=0.4", f"--agent={agent}"]
    assert train(*mixture, *options, f"--output={run}", "--export=hf") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--granularity experts+channels --prune-rate 0.5 # prune more" in said
    found = results(run)
    assert found["scope"] == "uniform"
    assert found["prune_rate"]["achieved"] >= 0.4
    assert found["perplexity"]["pruned"] == pytest.approx(found["perplexity"]["masked"], rel=1e-6)
    loaded = AutoModelForCausalLM.from_pretrained(
        run / "hf", dtype=torch.float64, experts_implementation="eager"
    )
    assert type(loaded).__name__ == "MixtralForCausalLM"
    assert (loaded.config.num_local_experts, loaded.config.intermediate_size) == (3, 4)
    assert numbers(run / "hf") == found["parameters"]["pruned"]
    with torch.no_grad():
        error = loaded(tokens()[:, :9] % 26).logits
        error = error - load_any(str(run), dtype="float64").model(tokens()[:, :9] % 26).logits
    assert float(error.abs().max()) <= 1e-4  # the export is in float32
    command("export", run, "--uniform", f"--output={tmp_path / 'equal'}")
    assert numbers(tmp_path / "equal") == numbers(run / "hf")
    assert "channels of each expert were put into another order" in (
        (run / "hf" / "README.md").read_text().replace("\n", " ")
    )


@pytest.mark.parametrize("method", ["reap", "expert-frequency"])
def test_methods_of_experts_choose_their_own_granularity_and_scope(method, mixture, tmp_path):
    words = [word for word in mixture if "granularity" not in word and "total" not in word]
    words = [word for word in words if "init" not in word]
    assert command("prune_baseline", *words, f"--method={method}", f"--output={tmp_path}/run") == 0
    found = results(tmp_path / "run")
    assert (found["granularity"], found["scope"]) == ("experts", "uniform")


def test_a_repaired_run_exports_a_stock_model_of_the_same_loss(mixture, tmp_path):
    words = [word for word in mixture if not word.startswith(("--total", "--init"))]
    words += ["--method=random", "--seed=2"]  # worse than the dense model, which repairs imitate
    words += ["--repair=least-squares", "--method-samples=16", "--export=hf"]
    run = tmp_path / "run"
    assert command("prune_baseline", *words, f"--output={run}") == 0
    found = results(run)
    losses = found["repair"]["held_out_loss"]
    assert found["repair"]["shipped"] and losses["repaired"] < losses["masked"] - 0.01
    assert found["perplexity"]["pruned"] != found["perplexity"]["masked"]
    loaded = AutoModelForCausalLM.from_pretrained(run / "hf", dtype=torch.float64)
    loaded.set_experts_implementation("eager")
    assert type(loaded).__name__ == "MixtralForCausalLM"
    assert numbers(run / "hf") == found["parameters"]["pruned"] == found["parameters"]["masked"]
    reloaded = load_any(str(run), dtype="float64").model
    dense = FinishedRun.open(run).load().model
    with torch.no_grad():
        logits = [model(tokens() % 26).logits for model in (loaded, reloaded, dense.double())]
    assert float((logits[0] - logits[1]).abs().max()) <= 1e-4  # the export is in float32
    assert float((logits[0] - logits[2]).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prune-rate=0.6"], "the 2 that each token uses; choose a rate of at most 0.5"),
        (
            ["--granularity=heads+channels"],
            "whose channels go with experts; choose heads",
        ),
        (["--init=wanda-sp"], "does not score granularity 'experts'"),
        (["--granularity=experts+channels", "--scope=global"], "choose budget per-kind and scope"),
        (["--granularity=experts+channels", "--prune-rate=0.9"], "the least that a layer keeps"),
        (["--granularity=experts+channels", "--init=flap"], "does not score granularity"),
        (["--agent=random-search"], "learns how much each layer keeps, which scope uniform fixes"),
        (["--reward=repaired"], "a pruned layer or expert has none|is about heads and channels"),
    ],
)
def test_what_does_not_work_is_one_sentence_before_a_run_exists(
    options, message, mixture, tmp_path, capsys
):
    refused("train_agent", *mixture, *options, f"--output={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
    error = capsys.readouterr().err
    assert any(part in error.replace("\n", " ") for part in message.split("|"))
