"""Distillation as a command does it: stages, what is kept, resuming, and what is refused."""

import json
from dataclasses import replace
from itertools import count

import pytest

from helpers.command import Crash, command
from helpers.finetuning_toy import Listener, finetune, left, same_weights, settings
from helpers.finished_run import logits
from helpers.tiny import letters_tokenizer, tiny_model
from pgprune import PruningError
from pgprune.data.training_data import TrainingDataConfig
from pgprune.export.export import ExportConfig, export
from pgprune.finetuning.distillation import DistillationConfig
from pgprune.finetuning.finetune import Finetuning
from pgprune.finetuning.local import LocalConfig
from pgprune.finetuning.training import TrainingConfig
from pgprune.finetuning.validation import ValidationConfig

DISTILL = DistillationConfig(distill=True)
LOCAL = LocalConfig(local=True, local_windows=8, local_passes=1, local_learning_rate=2e-3)
WEIGHTS = TrainingConfig(train="layers", learning_rate=3e-3, batch_size=4)


@pytest.fixture
def options(text) -> dict:
    """Both stages, validated on the one text there is."""
    validation = ValidationConfig(validation=text, validation_windows=4, validate_every=2)
    return {
        "distillation": DISTILL,
        "local": LOCAL,
        "training": WEIGHTS,
        "validation": validation,
    }


def test_both_stages_bring_a_run_closer_to_its_dense_model(run, config, data, options):
    record = finetune(run.path, config, data, **options)
    assert list(record["perplexity"]) == ["before", "local", "after"]
    assert [stage["stage"] for stage in record["stages"]] == ["local", "distillation"]
    assert [stage["tokens"] for stage in record["stages"]] == [8 * 16, 10 * 4 * 16]
    assert record["training"]["train"] == "layers"
    assert record["loss"]["last"] < record["loss"]["first"]
    history = record["kept"]["history"]
    assert [look["step"] for look in history] == [0, 2, 4, 6, 8, 10][: len(history)]
    means = {look["step"]: sum(look["losses"].values()) for look in history}
    assert means[record["kept"]["update"]] == min(means.values())
    dense, before = logits(run.path.parent / "model"), logits(export(run, ExportConfig()))
    after = logits(run.path / "finetuned")
    assert (after - dense).square().mean() < (before - dense).square().mean()
    written = json.loads((run.path / "finetuned" / "finetuning.json").read_text())
    assert written["teacher"] == "model"
    assert written["validation"]["texts"] == {"training text": "text.txt", "other text": "text.txt"}
    card = (run.path / "finetuned" / "README.md").read_text()
    assert "learned the predictions of model at temperature 1 in 10 updates" in card
    assert "fitted to the states of model by itself, on 8 windows" in card
    assert str(run.path.parent) not in card + json.dumps(written)


def test_blocks_alone(run, config, data, options):
    record = finetune(run.path, config, data, **options | {"distillation": DistillationConfig()})
    assert list(record["perplexity"]) == ["before", "after"]
    assert [stage["stage"] for stage in record["stages"]] == ["local"]
    assert "training" not in record
    assert not list(run.path.glob("*.checkpoint.*"))


def test_either_attention_kernel_learns_the_same(run, config, data, options):
    sdpa, eager = (
        finetune(
            run.path,
            replace(config, attn_implementation=kernel, output=str(run.path / kernel)),
            data,
            **options,
        )
        for kernel in ("sdpa", "eager")
    )
    assert sdpa["loss"] == pytest.approx(eager["loss"], rel=1e-4)


def test_weights_that_are_worse_than_before_are_not_shipped(
    run, config, data, options, monkeypatch
):
    rising = count()
    monkeypatch.setattr(
        "pgprune.finetuning.validation.held_out_losses",
        lambda model, sets: dict.fromkeys(sets, float(next(rising))),
    )
    view = Listener()
    record = finetune(run.path, config, data, **options | {"local": LocalConfig()}, view=view)
    assert "every state of the training is worse on held-out windows, so none is kept" in view.notes
    assert record["kept"]["update"] == 0
    assert record["updates"] == {"done": 10, "planned": 10}
    assert record["perplexity"]["after"] == record["perplexity"]["before"]
    assert same_weights(run.path / "finetuned", export(run, ExportConfig(dtype="float32")))


@pytest.mark.parametrize("crashed", ["local", "training"])
@pytest.mark.parametrize("train", ["lora", "all"])
def test_a_killed_command_resumes_where_it_was(run, config, data, options, train, crashed):
    options |= {"training": replace(WEIGHTS, train=train)}
    config = replace(config, checkpoint_every=3)

    def crash():
        raise Crash

    label, after = ("local distillation", 2) if crashed == "local" else ("finetuning", 7)
    finetune(run.path, replace(config, output=str(run.path / "whole")), data, **options)
    with pytest.raises(Crash):
        finetune(run.path, config, data, **options, view=Listener(after, crash, label))
    assert (run.path / "finetuned.local.checkpoint.safetensors").exists()
    again = replace(config, resume=True)
    other = options | {"distillation": replace(DISTILL, top_k=3)}
    with pytest.raises(PruningError, match="with another distillation; repeat that"):
        finetune(run.path, again, data, **other)
    finetune(run.path, again, data, **options)
    assert same_weights(run.path / "finetuned", run.path / "whole")
    assert not list(run.path.glob("*.checkpoint.*"))


def test_an_export_names_no_place_of_its_dense_model(run, config, data, options):
    exported = export(run, ExportConfig(dtype="float32"))
    with pytest.raises(PruningError, match="give --teacher MODEL .*was pruned from 'model'"):
        Finetuning(str(exported), settings(config, data, **options))
    teacher = replace(DISTILL, teacher=str(run.path.parent / "model"))
    finetune(exported, config, data, **options | {"distillation": teacher})
    finetune(run.path, config, data, **options)
    assert same_weights(run.path / "finetuned", run.path / "hf-finetuned")


def refuses(message: str, source, config, data, **others) -> None:
    """One clear sentence, before any weights are read."""
    with pytest.raises(PruningError, match=message) as error:
        Finetuning(str(source), settings(config, data, **others))
    assert "\n" not in str(error.value)


def test_a_teacher_of_another_vocabulary(run, config, data, tmp_path):
    other, tokenizer = tmp_path / "other", letters_tokenizer()
    tiny_model("llama").save_pretrained(other)
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(other)
    teacher = replace(DISTILL, teacher=str(other))
    refuses(
        "another vocabulary than .*give the model", run.path, config, data, distillation=teacher
    )


def test_a_teacher_whose_states_do_not_compare(run, config, data, tmp_path, options):
    other = tmp_path / "other"
    tiny_model("llama", hidden_size=48, head_dim=8).save_pretrained(other)
    letters_tokenizer().save_pretrained(other)
    options |= {"distillation": replace(DISTILL, teacher=str(other))}
    with pytest.raises(
        PruningError, match="do not compare .*leave out --local and choose --hidden-loss"
    ):
        finetune(run.path, config, data, **options)
    alone = DistillationConfig(distill=True, teacher=str(other), hidden_loss_weight=0.0)
    options |= {"local": LocalConfig(), "distillation": alone}
    record = finetune(run.path, config, data, **options)
    assert record["completed"]


@pytest.mark.parametrize(
    ("processes", "free", "message"),
    [
        ("1", 1000, "student need 0.0 GB .* choose --train lora, --dtype bfloat16, or another"),
        ("999", 10**6, "student of 999 processes need 0.2 GB .* lora, fewer processes, --dtype"),
    ],
)
def test_too_little_memory_says_what_to_lower(
    processes, free, message, run, config, data, monkeypatch
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setattr("pgprune.finetuning.teacher.free_memory", lambda device: free)
    refuses(message, run.path, config, data, distillation=DISTILL, training=WEIGHTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"distillation": DistillationConfig(teacher="model")},
            "--teacher model is for --distill or --local alone",
        ),
        ({"distillation": DistillationConfig(top_k=4)}, "--top-k 4 is for --distill alone"),
        ({"local": LocalConfig(local_passes=2)}, "--local-passes 2 is for --local alone"),
        (
            {"data": TrainingDataConfig(tokens="64k"), "training": TrainingConfig(epochs=2)},
            "epochs",
        ),
        ({"data": TrainingDataConfig(tokens="64k", samples=5)}, "--tokens and --samples"),
    ],
)
def test_options_that_contradict(options, message, config, data):
    with pytest.raises(PruningError, match=message):
        settings(config, **{"data": data} | options)


def test_the_command(run, config, text, capsys):
    words = [run.path, f"--data={text}", "--sequence-length=16", "--tokens=256", "--batch-size=4"]
    words += [f"--evaluation={text}", "--evaluation-length=16", f"--validation={text}"]
    words += ["--distill", "--local", "--local-windows=4", "--local-passes=1", "--top-k=5"]
    assert command("finetune", *words) == 0
    shown = capsys.readouterr().out
    assert "4 of 4 windows x 16 tokens" in shown
    assert "of 6 better on held-out windows" in shown
    assert "held-out loss" in shown
    assert left(run.path / "finetuned")
