"""Training of weights themselves: which ones, in which number format, and bit for bit again."""

import copy

import pytest
import torch

from helpers.finetuning_toy import pruned, same, trained, trainer, weights
from pgprune import PruningError


@pytest.mark.parametrize(("train", "others"), [("layers", True), ("all", False)])
def test_the_weights_of_the_layers_or_all_are_trained(train, others):
    model = pruned(pattern="nothing")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    merged = trained(model, train=train).part.merge()
    assert merged is model
    kept = {n for n, p in merged.named_parameters() if torch.equal(p, before[n])}
    outside = {name for name in before if not name.startswith("model.layers.")}
    assert kept == (outside if others else set())
    assert not any(p.requires_grad or p.grad is not None for p in merged.parameters())


def test_weights_of_16_bits_are_trained_in_32():
    model = pruned(pattern="nothing").bfloat16()
    before = {name: p.clone() for name, p in model.named_parameters()}
    made = trainer(model, train="layers", learning_rate=1e-5)
    while made.step < made.total:
        made.advance()
    assert {p.dtype for p in made.part.parameters.values()} == {torch.float32}
    changed = weights(made)
    assert all((value - before[name].float()).abs().max() > 0 for name, value in changed.items())
    merged = made.part.merge()
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}


def test_it_goes_on_bit_for_bit():
    whole, half = (trained(pruned(), steps, train="all", epochs=2) for steps in (6, 2))
    tensors, values = copy.deepcopy(half.state())
    other = trainer(pruned(), train="all", epochs=2)
    other.restore(tensors, values)
    while other.step < other.total:
        other.advance()
    assert other.losses == whole.losses
    assert same(weights(other), weights(whole))


def test_float16():
    with pytest.raises(PruningError, match="float16 overflows"):
        trainer(pruned().half(), train="all")
