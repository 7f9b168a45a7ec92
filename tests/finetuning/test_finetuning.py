"""Recovery: from a run or a model to a finetuned directory."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from helpers.command import command, refused
from helpers.finetuning_toy import LETTERS, Listener, finetune, left, perplexity, same_weights
from helpers.finished_run import logits, numbers
from helpers.tiny import letters_tokenizer
from pgprune.data.stream import DataConfig, evaluation_windows
from pgprune.data.training_data import TrainingDataConfig
from pgprune.export.export import ExportConfig, export
from pgprune.finetuning.config import FinetuningConfig
from pgprune.losses.windows import model_perplexity
from pgprune.runs.any_model import load_any
from pgprune.utils.options import dump_yaml, to_dict

pytest.importorskip("peft")


def test_a_run_becomes_a_directory_that_is_better(run, config, data):
    record = finetune(run.path, config, data)
    output = run.path / "finetuned"
    assert record["output"] == str(output)
    before, after = (record["perplexity"][row]["text"] for row in ("before", "after"))
    assert after < 0.5 * before
    text = DataConfig(evaluation=config.evaluation, sequence_length=16)
    sets = evaluation_windows(text, AutoTokenizer.from_pretrained(output))
    loaded = load_any(str(run.path), dtype="float32")
    assert before == pytest.approx(model_perplexity(loaded.model, sets["text"]))
    assert after == pytest.approx(perplexity(output, config), rel=1e-5)
    assert numbers(output) == loaded.parameters == record["parameters"]
    assert record["updates"] == {"done": 10, "planned": 10}
    assert record["loss"]["last"] < record["loss"]["first"]
    assert record["completed"]


def test_the_directory_is_complete(run, config, data):
    record = finetune(run.path, config, data)
    output = run.path / "finetuned"
    exported = export(run, ExportConfig())
    assert {*left(output)} == {*left(exported), "finetuning.json"}
    pruned, finetuned = (load_file(path / "model.safetensors") for path in (exported, output))
    assert pruned.keys() == finetuned.keys()
    written = json.loads((output / "finetuning.json").read_text())
    assert written["perplexity"] == record["perplexity"]
    assert written["data"]["source"] == "text.txt"
    lines = (run.path / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["what"] for line in lines] == ["finetuning"]
    card = (output / "README.md").read_text()
    assert "trust_remote_code=True" in card
    assert f"| this model | {record['perplexity']['after']['text']:.2f} |" in card
    configs = [json.loads((path / "config.json").read_text()) for path in (exported, output)]
    assert configs[1]["pgprune"].pop("finetuned")
    assert configs[0] | {"dtype": "float32"} == configs[1]
    for path in output.glob("*.json"):
        assert "/" not in written["model"]
        assert str(run.path.parent) not in path.read_text() + card
    assert not list(run.path.glob("*.checkpoint.*"))


def test_an_exported_directory_gives_the_same(run, config, data):
    exported = export(run, ExportConfig(dtype="float32"))
    finetune(run.path, config, data)
    record = finetune(exported, config, data)
    assert record["output"] == str(run.path / "hf-finetuned")
    assert same_weights(run.path / "finetuned", run.path / "hf-finetuned")
    card = (run.path / "hf-finetuned" / "README.md").read_text()
    assert card.startswith((exported / "README.md").read_text().rstrip())
    assert "## Recovery by finetuning" in card


def test_every_family_and_a_dense_model(model, tmp_path, config, data):
    dense = tmp_path / "model"
    model.save_pretrained(dense)
    letters_tokenizer().save_pretrained(dense)
    record = finetune(dense, config, replace(data, samples=8))
    assert record["output"] == str(tmp_path / "model-finetuned")
    found = logits(tmp_path / "model-finetuned", trust_remote_code=False)
    assert (found - logits(dense)).abs().max() > 1e-3
    assert numbers(tmp_path / "model-finetuned") == numbers(dense)
    assert "# model, finetuned" in (tmp_path / "model-finetuned" / "README.md").read_text()


def test_instructions(run, config, tmp_path):
    rows = [{"instruction": f"say {word}", "output": word} for word in LETTERS.split("o")]
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(rows))
    data = TrainingDataConfig(str(path), sequence_length=16, train_on="response")
    record = finetune(run.path, config, data)
    assert record["data"]["kind"] == "instructions"
    assert 0 < record["data"]["trained_share"] < 0.5


def test_a_run_is_finetuned_on_its_own_text_and_judged_as_it_was(run, text):
    own = DataConfig(calibration=text, evaluation=text, sequence_length=24, evaluation_windows=5)
    run.sections["data"] = to_dict(own)
    (run.path / "config.yaml").write_text(dump_yaml(run.sections))
    run.write_results(run.results)
    data = TrainingDataConfig(samples=4, sequence_length=16)
    record = finetune(run.path, FinetuningConfig(), data)
    assert record["data"]["source"] == text
    assert record["evaluation"]["windows"] == {"text": 5}
    assert record["evaluation"]["sequence_length"] == 24


def test_windows_are_no_longer_than_the_context_and_no_more_than_there_are(run, config, text):
    view = Listener()
    finetune(run.path, config, TrainingDataConfig(text), view=view)
    assert view.notes[:2] == [
        "--sequence-length is 64, the model's context, and not 1,024",
        "the training data has 32 windows, so --samples is 32",
    ]


def test_the_command(run, config, text, capsys):
    words = [run.path, f"--data={text}", "--sequence-length=16", "--samples=12", "--rank=2"]
    words += [f"--evaluation={text}", "--evaluation-length=16", "--batch-size=4"]
    assert command("finetune", *words) == 0
    shown = capsys.readouterr().out
    assert "3 of 4 windows x 16 tokens" in shown
    assert "before" in shown and "after" in shown
    assert f"evaluate.py {run.path / 'finetuned'}" in shown
    refused("finetune", *words)
    assert "finetuned exists" in capsys.readouterr().err
