"""scripts/prune_baseline.py as a user runs it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.command import as_options, command, refused, results
from helpers.finished_run import logits, numbers
from helpers.tiny import tokens
from pgprune.budget.problem import Problem, PruningConfig
from pgprune.errors import PruningError
from pgprune.experiments.baseline import Baseline, BaselineSettings, fitting
from pgprune.losses import windows as window_losses
from pgprune.methods import METHODS
from pgprune.metrics import METRICS
from pgprune.models.load import ModelConfig, load_model
from pgprune.repair.repair import Repair
from pgprune.runs.finished import FinishedRun
from pgprune.utils.command_line import ArgumentParser


@pytest.fixture(scope="module")
def few(arguments) -> list[str]:
    """Options for a tiny model and text."""
    small = arguments | {"evaluation_windows": 4, "method_samples": 8, "prune_rate": 0.34}
    return as_options(small)


def prune(*words: str) -> int | None:
    return command("prune_baseline", *words)


@pytest.fixture(scope="module")
def flap(few, tmp_path_factory) -> Path:
    """A run of FLAP, which brings its own repair."""
    run = tmp_path_factory.mktemp("runs") / "flap"
    assert prune(*few, "--method=flap", f"--output={run}") == 0
    return run


def test_rotated_values_are_exported_as_they_were_measured(few, arguments, tmp_path):
    options = {"granularity": "values+channels"}
    run = tmp_path / "run"
    assert prune(*few, *as_options(options), f"--output={run}", "--export=hf") == 0
    mask = load_file(run / "mask.safetensors")["mask"]
    again = Problem.make(**arguments | options | {"prune_rate": 0.34})
    expected = again.lm.logits(mask[None], tokens())[0]
    torch.testing.assert_close(logits(run / "hf"), expected, rtol=0, atol=1e-10)
    unrotated = Problem.make(**arguments | options | {"rotate_values": False})
    assert (unrotated.lm.logits(mask[None], tokens())[0] - expected).abs().max() > 1e-3
    assert numbers(run / "hf") == results(run)["parameters"]["pruned"]
    assert "into another basis" in (run / "hf" / "README.md").read_text()


def test_a_run_leaves_what_the_design_says(flap):
    files = {str(path.relative_to(flap)) for path in flap.rglob("*") if path.is_file()}
    assert files == {
        "config.yaml",
        "command.txt",
        "versions.txt",
        "mask.safetensors",
        "repair.safetensors",
        "results.json",
        "manifest.json",
        "plots/kept_shares.png",
    }
    found = results(flap)
    assert found["method"] == "flap" and "agent" not in found
    assert found["granularity"] == "heads+channels"
    assert found["budget"] == "parameters"
    assert found["prune_rate"]["requested"] == 0.34
    assert found["prune_rate"]["achieved"] >= 0.34
    assert found["perplexity"].keys() == {"dense", "masked", "pruned"}
    assert found["perplexity"]["masked"] != found["perplexity"]["pruned"]
    assert {"mask_evaluations", "tokens", "seconds", "peak_memory_bytes", "seed"} <= found.keys()
    masks = load_file(flap / "mask.safetensors")
    assert masks.keys() == {"mask", "scores"}
    assert Repair.load(flap / "repair.safetensors").biases
    sections = yaml.safe_load((flap / "config.yaml").read_text())
    assert sections["method"]["method"] == "flap"
    assert sections["pruning"]["granularity"] == "heads+channels"
    assert sections["decided"].keys() == {"executor", "model_fingerprint", "text_fingerprint"}


def test_the_dense_model_decides_on_the_windows_of_all_rows(few, tmp_path, monkeypatch):
    monkeypatch.setattr(window_losses, "STANDARD_ERROR", 0.08)
    unsure = [word for word in few if not word.startswith("--evaluation-windows")]
    assert prune(*unsure, "--method=flap", f"--output={tmp_path}/run") == 0
    run = FinishedRun.open(tmp_path / "run")
    count = run.results["evaluation"]["windows"]["text"]
    assert window_losses.FEWEST_WINDOWS < count < 250  # of 252
    errors, values = run.results["standard_error"], run.results["perplexity"]
    assert errors.keys() == values.keys()
    assert 0.07 < errors["dense"]["text"] / values["dense"]["text"] < 0.08
    _, tokenizer = load_model(run.config("model", ModelConfig))
    assert len(run.evaluation_windows(tokenizer)["text"]) == count


def test_without_a_repair_the_mask_is_what_is_shipped_and_can_be_exported(few, tmp_path):
    run = tmp_path / "run"
    options = ("--method=flap", "--repair=none", "--export=hf", "--quiet", f"--output={run}")
    assert prune(*few, *options) == 0
    assert not (run / "repair.safetensors").exists()
    found = results(run)
    assert found["perplexity"]["masked"] == found["perplexity"]["pruned"]
    assert numbers(run / "hf") == found["parameters"]["pruned"]
    assert bool(logits(run / "hf", trust_remote_code=True).isfinite().all())


@pytest.mark.parametrize("how", ["bias", "least-squares"])
def test_any_mask_can_be_repaired(how, few, tmp_path):
    for method in ("magnitude", "shortgpt"):
        run = tmp_path / method
        prune(*few, f"--method={method}", f"--repair={how}", f"--output={run}", "--quiet")
        assert results(run)["perplexity"].keys() == {"dense", "masked", "pruned"}
        repair = Repair.load(run / "repair.safetensors")
        assert bool(repair.weights) == (how == "least-squares") or method == "shortgpt"


def test_biases_that_a_repair_adds_are_parameters(few, tmp_path, arguments):
    model, _ = load_model(ModelConfig(arguments["model"]))
    model.config.attention_bias = model.config.mlp_bias = False
    plain = tmp_path / "model"
    weights = {name: w for name, w in model.state_dict().items() if not name.endswith("bias")}
    model.save_pretrained(plain, state_dict=weights)
    for file in Path(arguments["model"]).glob("tokenizer*"):
        (plain / file.name).write_bytes(file.read_bytes())
    counts = []
    for how in ("none", "auto"):
        run = tmp_path / how
        options = (f"--model={plain}", "--method=flap", f"--repair={how}", f"--output={run}")
        prune(*few, *options, "--quiet", "--export=hf")
        counts.append(results(run)["parameters"]["pruned"])
        assert numbers(run / "hf") == counts[-1]
    repair = Repair.load(run / "repair.safetensors")
    assert counts[1] - counts[0] == 32 * len(repair.biases) > 0


def test_every_phase_that_may_take_long_is_told(few, tmp_path, heard):
    parser = ArgumentParser(None)
    BaselineSettings.add_to(parser)
    words = [*few, "--method=wanda-sp", "--repair=least-squares", f"--output={tmp_path / 'run'}"]
    settings = BaselineSettings.from_arguments(parser.parse_args(words))
    Baseline(settings).run(["python"])
    assert heard.labels == [
        f"loading {settings.model.model}",
        "  Loading weights",
        "reading the calibration text",
        "reading the evaluation texts",
        "method wanda-sp",
        "  layers",
        "repair least-squares",
        "  layers",
        "held-out windows",
        "held-out windows",
        "perplexity of dense, masked",
        "  text",
        "perplexity of pruned",
        "  text",
        "drawing kept_shares.png",
    ]


def test_the_same_seed_gives_the_same_run(few, tmp_path):
    masks = {}
    for name, seed in {"first": 0, "again": 0, "other": 1}.items():
        run = tmp_path / name
        prune(*few, "--method=random", f"--seed={seed}", f"--output={run}", "--quiet")
        masks[name] = load_file(run / "mask.safetensors")
    assert torch.equal(masks["first"]["mask"], masks["again"]["mask"])
    assert not torch.equal(masks["first"]["scores"], masks["other"]["scores"])


def test_the_table_names_the_method(few, tmp_path, capsys):
    prune(*few, "--method=shortgpt", f"--output={tmp_path / 'run'}")
    out = capsys.readouterr().out
    assert "mask of shortgpt" in out and "learned" not in out
    assert "scripts/export.py" in out and "interrupted" not in out


def test_granularity_and_budget_default_to_the_methods_own():
    for name, method in METHODS.items():
        chosen = fitting(name, PruningConfig(), {})
        assert (chosen.granularity, chosen.budget) == (method.granularities[0], method.budgets[0])
    asked = {"granularity": "heads", "budget": "units"}
    assert fitting("flap", PruningConfig(**asked), asked) == PruningConfig(**asked)
    uniform = {"scope": "uniform"}
    assert fitting("flap", PruningConfig(**uniform), uniform).budget == "per-kind"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--method=wanda-sp", "--granularity=layers"], "wanda-sp does not fit --granularity laye"),
        (["--method=shortgpt", "--granularity=blocks"], "choose layers, or leave it out"),
        (["--method=2ssp", "--budget=units"], "2ssp does not fit --budget units; choose parameter"),
        (["--method=alphago"], "wanda-sp.*sleb"),
        (["--method=llm-pruner", "--taylor=third"], "element-first"),
        (["--method=slicegpt", "--repair=bias"], "slicegpt"),
        (["--nonsense=1"], "nonsense"),
        (["--prune-rate=1.5"], "below 1"),
        (["--model=nowhere/"], "nowhere"),
        (["--method-samples=100000"], "fewer than the 100000 asked for"),
        (["--method=sleb", "--prune-rate=0.5"], "first 1 and the last 1 of 3 layers"),
    ],
)
def test_mistakes_are_refused_before_a_run_exists(options, says, few, tmp_path):
    with pytest.raises(PruningError, match=says):
        prune(*few, f"--output={tmp_path / 'run'}", *options)
    assert not (tmp_path / "run").exists()


def test_an_existing_output_is_not_touched(few, tmp_path, monkeypatch):
    monkeypatch.setattr(Baseline, "__init__", lambda *_: pytest.fail("work before the check"))
    with pytest.raises(PruningError, match="exists"):
        prune(*few, f"--output={tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_interrupting_leaves_nothing(few, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(METRICS, "wanda-sp", replace(METRICS["wanda-sp"], score=interrupt))
    assert prune(*few, "--method=wanda-sp", f"--output={tmp_path / 'run'}") == 130
    assert not (tmp_path / "run").exists()


def test_bad_input_gets_one_line_and_status_2(capsys):
    refused("prune_baseline", "--method=sleb", "--granularity=heads")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: method sleb does not fit") and err.count("\n") == 1
