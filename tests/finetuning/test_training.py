"""The training loop: what it does not depend on, its schedules, and its state bit for bit."""

import copy

import pytest
import torch

from helpers.finetuning_toy import pruned, same, trained, weights, windows
from pgprune import PruningError
from pgprune.finetuning.training import TrainingConfig, step_size

pytest.importorskip("peft")


def test_it_learns():
    trainer = trained(pruned(), epochs=20)
    assert trainer.losses[-1] < 0.7 * trainer.losses[0]


def test_micro_batches_only_save_memory():
    whole, parts = (trained(pruned(), micro_batch_size=size) for size in (4, 1))
    assert whole.losses == pytest.approx(parts.losses)
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(parts)[name], rtol=0, atol=1e-6)


def test_an_epoch_uses_every_window_once():
    trainer = trained(pruned(), steps=0, epochs=2)
    assert trainer.total == 2 * 3
    seen = []
    for _ in range(3):
        seen += trainer._batches.at(trainer.step)[0].tolist()
        trainer.advance()
    assert sorted(seen) == sorted(windows().ids.tolist())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1 / 3, 2 / 3, 1, 3 / 4, 1 / 2, 1 / 4]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.8536, 0.5]),
    ],
)
def test_schedules(schedule, expected):
    config = TrainingConfig(warmup=1 / 3, schedule=schedule)
    found = [step_size(config, 1.0, step, 6) for step in range(len(expected))]
    assert found == pytest.approx(expected, abs=1e-4)


def test_bfloat16_autocast_is_close():
    model = pruned().float()
    full = trained(copy.deepcopy(model), steps=1)
    mixed = trained(model, steps=1, precision="bfloat16")
    assert mixed.losses[0] == pytest.approx(full.losses[0], rel=0.02)
    assert mixed.losses[0] != full.losses[0]


def test_everything_follows_the_seed():
    first, again, other = (trained(pruned(), dropout=0.5, seed=seed) for seed in (0, 0, 1))
    assert first.losses == again.losses != other.losses
    assert same(weights(first), weights(again))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    trained(pruned(), dropout=0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_goes_on_bit_for_bit():
    changes = {"epochs": 3, "dropout": 0.3}
    whole, half = trained(pruned(), **changes), trained(pruned(), steps=4, **changes)
    tensors, values = half.state()
    tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    other = trained(pruned(), steps=0, **changes)
    other.restore(tensors, copy.deepcopy(values))
    while other.step < other.total:
        other.advance()
    assert other.losses == whole.losses
    assert same(weights(other), weights(whole))


def test_a_loss_that_is_not_finite():
    model = pruned()
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = float("inf")
    with pytest.raises(PruningError, match="loss of step 1 is .*; choose a learning_rate below"):
        trained(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        ({"schedule": "constant"}, "schedule must be one of cosine, linear"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(PruningError, match=message):
        TrainingConfig(**change)
