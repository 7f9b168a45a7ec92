"""Held-out windows: what they keep, when they end a training, and that none is trained on."""

import random
import string

import pytest
import torch

from helpers.tiny import letters_tokenizer, tiny_model, tokens
from pgprune import PruningError
from pgprune.data.training_data import TrainingDataConfig, count_of
from pgprune.finetuning.batches import open_data
from pgprune.finetuning.validation import Keeper, held_out_losses, other_text
from pgprune.losses.windows import model_losses


def keeper(model, patience: int = 2) -> Keeper:
    sets = {"training text": tokens(3, 8), "other text": tokens(2, 8, seed=1)}
    return Keeper(model, dict(model.named_parameters()), sets, every=2, patience=patience)


@torch.no_grad()
def test_the_best_weights_come_back_and_the_patience_ends(monkeypatch):
    losses = {0: 3.0, 2: 2.0, 4: 2.5, 6: 2.25}
    model, step = tiny_model("llama"), 0
    monkeypatch.setattr(
        "pgprune.finetuning.validation.held_out_losses",
        lambda model, sets: {name: losses[step] for name in sets},
    )
    kept = keeper(model)
    for step in range(7):
        model.get_input_embeddings().weight.fill_(step)
        assert not kept.stop
        kept.look(step)
    assert [look["step"] for look in kept.history] == [0, 2, 4, 6]
    assert (kept.best, kept.stop) == (2, True)
    kept.put_back(6)
    assert torch.all(model.get_input_embeddings().weight == 2)


def test_the_loss_is_the_mean_of_each_text():
    model, sets = tiny_model("llama"), {"one": tokens(3, 8), "other": tokens(9, 8, seed=1)}
    found = held_out_losses(model, sets)
    for name, windows in sets.items():
        assert found[name] == pytest.approx(float(model_losses(model, windows).mean()))


def test_the_other_domain_is_another_one():
    assert other_text("builtin") == other_text("c4") == "builtin:prose"
    assert other_text("builtin:prose") == "builtin:code"


def texts(count: int) -> list[str]:
    """Letters at random."""
    letters = random.Random(0)
    return ["".join(letters.choices(string.ascii_lowercase, k=100)) for _ in range(count)]


def opened(source: str, hold_out: int = 4, epochs: int = 1, **data):
    config = TrainingDataConfig(sequence_length=8, **data)
    options = {"batch_size": 4, "epochs": epochs, "seed": 0, "hold_out": hold_out}
    return open_data(source, letters_tokenizer(), 8, config, **options)


def test_held_out_windows_are_never_trained_on(tmp_path):
    lines = [f'{{"text": "{text}"}}' for text in texts(60)]
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(lines))
    batches, held = opened(str(path), tokens="4k")
    assert batches.total == 125
    assert batches.facts["windows"] == 500
    trained = {tuple(row) for step in range(125) for row in batches.at(step)[0].tolist()}
    assert 1 <= len(held) <= 4
    assert not trained & set(map(tuple, held.tolist()))
    assert torch.equal(batches.at(7)[0], batches.at(7)[0])
    assert not torch.equal(batches.at(7)[0], batches.at(8)[0])


def test_instructions_are_held_out_too(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [f'{{"instruction": "say {text[:20]}", "output": "{text}"}}' for text in texts(35)]
    path.write_text("\n".join(rows))
    batches, held = opened(str(path), hold_out=4)
    count = batches.facts["windows"]
    assert batches.facts["kind"] == "instructions"
    assert len(held) == 4
    trained = {tuple(row) for step in range(batches.total) for row in batches.at(step)[0].tolist()}
    assert len(trained) <= count
    assert not trained & set(map(tuple, held.tolist()))
    assert opened(str(path), hold_out=0)[0].facts["windows"] == count + 4


@pytest.mark.parametrize(("text", "count"), [("512", 512), ("64k", 64_000), ("2.5M", 2_500_000)])
def test_numbers_of_tokens(text, count):
    assert count_of(text) == count


@pytest.mark.parametrize("text", ["", "0", "k", "2m", "-1", "1e6", "2 M", "0.0001"])
def test_what_is_no_number_of_tokens(text):
    with pytest.raises(PruningError, match="tokens must be a number such as 64k or 2M, not"):
        TrainingDataConfig(tokens=text)
