"""Recovery: from a run or a model to a finetuned directory, and every way it can end early."""

import json
import runpy
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from command import Crash
from finished_run import finished_run, logits, numbers
from masks import patterns
from pgprune import PruningError
from pgprune.cli import dump_yaml, run_command, to_dict
from pgprune.export import ExportConfig, export
from pgprune.finetuning import Finetuning
from pgprune.finetuning_config import FinetuningConfig
from pgprune.finetuning_view import FinetuningView
from pgprune.instructions import TrainingDataConfig
from pgprune.loading import load_any
from pgprune.lora import LoraConfig
from pgprune.run import Run
from pgprune.scoring import model_perplexity
from pgprune.stream import DataConfig, evaluation_windows
from pgprune.units import PruningUnits
from tiny import letters_tokenizer, tiny_model

pytest.importorskip("peft")
SCRIPT = Path(__file__).parents[1] / "scripts" / "finetune.py"
LORA = LoraConfig(learning_rate=1e-2, batch_size=4, rank=4)
LETTERS = "thequickbrownfoxjumpsoverthelazydog"


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> str:
    """Something that even a tiny model can learn."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(LETTERS * 60)
    return str(path)


@pytest.fixture
def config(text) -> FinetuningConfig:
    return FinetuningConfig(evaluation=text, evaluation_length=16, dtype="float32")


@pytest.fixture
def data(text) -> TrainingDataConfig:
    return TrainingDataConfig(data=text, samples=40, sequence_length=16)


@pytest.fixture
def run(tmp_path) -> Run:
    model = tiny_model("llama")
    units = PruningUnits.of(model)
    return finished_run(tmp_path, model, units, patterns(units)["layer 0 and some"])


class Listener(FinetuningView):
    """Collects what is shown; does something after an update, if asked."""

    def __init__(self, after: int = 0, then=lambda: None) -> None:
        super().__init__("test", quiet=True)
        self.after, self.then, self.notes = after, then, []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def update(self, step: int, total: int, loss: float) -> None:
        super().update(step, total, loss)
        if step == self.after:
            self.then()


def finetune(source, config, data, lora=LORA, view=None) -> dict:
    return Finetuning(str(source), config, data, lora, view or Listener()).run()


def perplexity(directory: Path, config: FinetuningConfig) -> float:
    """Of the text, with nothing of ours but the loss."""
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    sets = evaluation_windows(
        DataConfig(evaluation=config.evaluation, sequence_length=16), tokenizer
    )
    return model_perplexity(model, sets["text"])


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(path / "model.safetensors") for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- what comes out


def test_a_run_becomes_a_directory_that_is_better(run, config, data):
    record = finetune(run.path, config, data)
    output = run.path / "finetuned"
    assert record["output"] == str(output)
    before, after = (record["perplexity"][row]["text"] for row in ("before", "after"))
    assert after < 0.5 * before
    sets = evaluation_windows(
        DataConfig(evaluation=config.evaluation, sequence_length=16),
        AutoTokenizer.from_pretrained(output),
    )
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
    assert {path.name for path in output.iterdir()} == {
        *(path.name for path in exported.iterdir()),
        "finetuning.json",
    }
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


# ---------------------------------------------------------------- what is chosen for the user


def test_a_run_is_finetuned_on_its_own_text_and_judged_as_it_was(run, text):
    own = DataConfig(calibration=text, evaluation=text, sequence_length=24, evaluation_windows=5)
    run.sections["data"] = to_dict(own)
    (run.path / "config.yaml").write_text(dump_yaml(run.sections))
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


# ---------------------------------------------------------------- ending early


def test_ctrl_c_keeps_what_was_learned(run, config, data):
    view = Listener(3, lambda: signal.raise_signal(signal.SIGINT))
    record = finetune(run.path, config, data, view=view)
    assert record["updates"] == {"done": 3, "planned": 10}
    assert not record["completed"]
    assert "It was interrupted, 10 planned." in (run.path / "finetuned/README.md").read_text()
    assert record["perplexity"]["after"]["text"] == pytest.approx(
        perplexity(run.path / "finetuned", config), rel=1e-5
    )
    assert not list(run.path.glob("*.checkpoint.*"))


def test_a_killed_command_goes_on_where_it_was(run, config, data):
    def crash():
        raise Crash

    config = replace(config, checkpoint_every=2)
    finetune(run.path, replace(config, output=str(run.path / "whole")), data)
    with pytest.raises(Crash):
        finetune(run.path, config, data, view=Listener(5, crash))
    checkpoint = run.path / "finetuned.checkpoint.safetensors"
    assert checkpoint.exists()
    assert not (run.path / "finetuned").exists()
    with pytest.raises(PruningError, match="left from a command that was killed"):
        finetune(run.path, config, data)
    with pytest.raises(PruningError, match="of a command with another lora; repeat that"):
        finetune(run.path, replace(config, resume=True), data, replace(LORA, rank=2))
    with pytest.raises(PruningError, match="with another seed; repeat"):
        finetune(run.path, replace(config, resume=True, seed=1), data)
    view = Listener()
    record = finetune(run.path, replace(config, resume=True), data, view=view)
    assert "going on after update 4 of 10" in view.notes
    assert record["updates"]["done"] == 10
    assert same_weights(run.path / "finetuned", run.path / "whole")
    assert not checkpoint.exists()


def test_a_damaged_checkpoint(run, config, data):
    checkpoint = run.path / "finetuned.checkpoint.safetensors"
    checkpoint.write_bytes(b"half of it")
    with pytest.raises(PruningError, match="checkpoint .* is damaged"):
        finetune(run.path, replace(config, resume=True), data)


def test_a_full_disk_leaves_nothing_half_written(run, config, data, monkeypatch):
    def save_pretrained(self, directory, **options):
        (Path(directory) / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    before = left(run.path)
    finetuning = Finetuning(str(run.path), config, data, LORA, Listener())
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", save_pretrained)
    with pytest.raises(PruningError, match="cannot write .*finetuned: no space left on device"):
        finetuning.run()
    assert left(run.path) == before


# ---------------------------------------------------------------- what is refused


def refuses(message, source, config, data) -> None:
    """One clear sentence, before any weights are read."""
    with pytest.raises(PruningError, match=message) as error:
        Finetuning(str(source), config, data, LORA, Listener())
    assert "\n" not in str(error.value)


def test_an_output_that_exists(run, config, data):
    (run.path / "finetuned").mkdir()
    refuses("finetuned exists; choose another --output", run.path, config, data)


def test_zeros_in_dense_shapes(run, config, data):
    masked = export(run, ExportConfig(format="masked"))
    refuses("holds its mask as zeros, which finetuning would fill", masked, config, data)


def test_a_model_of_which_nothing_says_what_it_knows(run, config):
    model = run.path.parent / "model"
    refuses("calibrated on; give --data", model, config, TrainingDataConfig())


def test_a_hub_id_without_an_output(config, data):
    refuses("no place beside 'org/name'; give --output", "org/name", config, data)


def test_data_that_is_missing(run, config, data):
    refuses("'no.json' does not exist", run.path, config, replace(data, data="no.json"))


def test_windows_beyond_the_context(run, config, data):
    long = replace(config, evaluation_length=65)
    refuses("sequence_length 65 is more than the model's context of 64", run.path, long, data)


def test_a_run_that_has_not_finished(run, config, data):
    (run.path / "mask.safetensors").unlink()
    refuses("--resume", run.path, config, data)


def test_an_unknown_family(run, config, data):
    settings = run.path.parent / "model" / "config.json"
    settings.write_text(settings.read_text().replace('"llama"', '"gpt2"'))
    refuses("family 'gpt2', which is not supported", run.path.parent / "model", config, data)


# ---------------------------------------------------------------- the command


def test_the_command(run, config, text, monkeypatch, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    options = [f"--data={text}", "--sequence-length=16", "--samples=12", "--rank=2"]
    options += [f"--evaluation={text}", "--evaluation-length=16", "--batch-size=4"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(run.path), *options])
    assert main() == 0
    shown = capsys.readouterr().out
    assert "3/3 updates" in shown or "1/3 updates" in shown
    assert "before" in shown and "after" in shown
    assert f"python scripts/evaluate.py {run.path / 'finetuned'}" in shown
    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    assert exit_.value.code == 2
    assert "finetuned exists" in capsys.readouterr().err
