"""The command pgprune analyze as a user runs it, and the mistakes that users make."""

import json
import re

import pytest

from helpers.command import command, refused
from helpers.finished_run import run_of_pattern
from helpers.mixtures import MIXTURES
from helpers.tiny import letters_tokenizer, tiny_model
from pgprune.export.export import ExportConfig, export


@pytest.fixture(scope="module")
def few(arguments) -> list[str]:
    """Options for a tiny model and text."""
    return [f"--calibration={arguments['calibration']}", "--sequence-length=16", "--windows=4"]


@pytest.mark.parametrize("granularity", ["auto", "heads+channels"])
def test_a_model_is_counted_and_measured(granularity, arguments, few, tmp_path, capsys):
    output = tmp_path / "analysis"
    words = [*few, f"--granularity={granularity}", "--batch-size=2", f"--output={output}"]
    command("analyze", arguments["model"], *words)
    printed = capsys.readouterr().out
    names = sorted(path.name for path in output.iterdir())
    assert names == ["analysis.json", "analysis.md", "sensitivity.png"]
    found = json.loads((output / "analysis.json").read_text())
    kinds = ["values" if granularity == "auto" else "heads", "channels"]
    places = [(row["layer"], row["kind"]) for row in found["sensitivity"]]
    assert places == [(layer, kind) for layer in range(3) for kind in kinds]
    assert all(len(row["rise"]) == len(found["kept_shares"]) for row in found["sensitivity"])
    assert found["cache"]["batch_size"] == 2 and found["cache"]["context"] == 24  # the model's
    assert found["dtype"] == "float32"  # of an export
    assert found["memory_bytes"] == 4 * found["parameters"]["all"] + found["cache"]["bytes"]
    page = (output / "analysis.md").read_text()
    for text in (printed, page):
        assert "How much the loss rises" in text and f"{found['parameters']['all']:,}" in text
    assert "(sensitivity.png)" in page and str(output) in printed


def test_what_is_pruned_is_counted_only(tmp_path, capsys):
    run = run_of_pattern(tmp_path, "some")
    for source in (run.path, export(run, ExportConfig())):
        command("analyze", source, "--device=cpu")
        printed = capsys.readouterr().out
        assert f"{run.results['parameters']['pruned']:,}" in printed
        assert "The prune rate" not in printed and "How much the loss rises" not in printed


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_has_experts(family, few, tmp_path, capsys):
    tiny_model(family).save_pretrained(tmp_path)
    letters_tokenizer().save_pretrained(tmp_path)
    command("analyze", tmp_path, *few)
    printed = " ".join(capsys.readouterr().out.split())
    assert "experts 75%" in printed and "by reap" in printed


def test_counts_alone_read_no_text(arguments, tmp_path, capsys):
    output = tmp_path / "analysis"
    words = ("--no-sensitivity", "--calibration=nowhere.txt", f"--output={output}", "--quiet")
    command("analyze", arguments["model"], *words)
    assert sorted(path.name for path in output.iterdir()) == ["analysis.json", "analysis.md"]
    assert "The prune rate that less needs" in capsys.readouterr().out


def test_a_target_needs_a_rate_or_says_why_not(arguments, tmp_path, capsys):
    words = ("--no-sensitivity", f"--output={tmp_path / 'analysis'}", "--target", "parameters<=8K")
    command("analyze", arguments["model"], *words)
    found = json.loads((tmp_path / "analysis" / "analysis.json").read_text())
    rates, units = found["targets"], found["prunable"]
    assert "cannot be met" in rates["values+channels"]
    need = (found["parameters"]["all"] - 8000) / units["heads+channels"]
    assert rates["heads+channels"] == pytest.approx(need)
    assert "What the targets need" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "parameters<8K"], "is not of the form QUANTITY<=VALUE"),
        (["--calibration=nowhere.txt"], "nowhere.txt"),
        (["--sequence-length=64"], "sequence_length 64 is more than the model's context of 24"),
        (["--granularity=experts"], "has no experts"),
        (["--granularity=values", "--metric=reap"], "metric reap does not score"),
        (["--metric=reap"], "metric reap does not score"),
        (["--context=25"], "--context 25 is more than the model's context of 24"),
        (["--windows=0"], "0"),
        (["--output={model}"], "exists"),
        (["--device=tpu"], "tpu"),
    ],
)
def test_mistakes_are_said_in_a_sentence(words, said, arguments, few, capsys):
    model = arguments["model"]
    refused("analyze", model, *few, *(word.format(model=model) for word in words))
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and re.search(re.escape(said), line), line


def test_a_model_that_is_not_there(capsys):
    refused("analyze", "./nowhere")
    assert "nowhere" in capsys.readouterr().err
