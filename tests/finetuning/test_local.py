"""Blocks by themselves: they add up to the model, and each learns the dense states."""

import copy
from itertools import product

import pytest
import torch

from helpers.finetuning_toy import pruned
from helpers.tiny import tiny_model, tokens
from pgprune.finetuning.blocks import BLOCKS, Blocks
from pgprune.finetuning.local import LocalConfig, LocalDistillation
from pgprune.finetuning.objectives import autocast
from pgprune.finetuning.parts import listed_family
from pgprune.models.families import decoder_layers

PLAIN = autocast("full", torch.device("cpu"))
LAYERS = (0, 1, 2)


def states_of(model, ids: torch.Tensor) -> list[torch.Tensor]:
    """The states after each layer."""
    states: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(
            lambda layer, args, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in decoder_layers(model, listed_family(model.config))
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    return states


@pytest.mark.parametrize(
    ("family", "pattern", "kinds"),
    [
        *product(
            ["llama", "opt", "gemma2", "granite", "gpt_neox", "phi", "gpt2"],
            ["nothing", "some", "all heads of layer 1"],
            ["heads+channels"],
        ),
        ("llama", "some", "values+channels"),
        *product(["llama", "opt", "gpt_neox"], ["some", "layer 1"], ["blocks"]),
        *product(["qwen3_moe", "granitemoe"], ["some"], ["heads"]),
        ("gpt_oss", "nothing", "layers"),
    ],
)
@torch.no_grad()
def test_blocks_add_up_to_the_model(family, pattern, kinds):
    model, ids = pruned(family, pattern, kinds), tokens()
    blocks = Blocks(model, PLAIN)
    states = blocks.embedded(ids)
    for index, expected in enumerate(states_of(model, ids)):
        before = states
        for block in BLOCKS:
            states = states + blocks.added(index, block, ids, before if blocks.parallel else states)
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-10)


def local(model, teacher=None, layers=LAYERS, **options) -> LocalDistillation:
    config = LocalConfig(local=True, **{"local_passes": 3, "local_batch_size": 4} | options)
    sets = {"training text": tokens(4, 12, seed=1), "other text": tokens(2, 12, seed=2)}
    return LocalDistillation(
        *(model, teacher or tiny_model("llama"), layers, tokens(16, 12), sets),
        config=config,
        highest=2e-3,
        seed=0,
        autocast=PLAIN,
    )


def never() -> bool:
    return False


def test_errors_fall_and_the_states_come_closer_to_the_dense_ones():
    model, teacher, ids = pruned(), tiny_model("llama"), tokens(4, 12, seed=3)

    @torch.no_grad()
    def error(model) -> float:
        pairs = zip(states_of(model, ids), states_of(teacher, ids), strict=True)
        return sum(float((a - b).square().sum() / b.square().sum()) for a, b in pairs)

    before = error(model)
    work = local(model, teacher)
    work.run(never, lambda: None)
    assert [(each.layer, each.block) for each in work.errors] == [
        (layer, block) for layer in LAYERS for block in BLOCKS
    ]
    assert all(each.after < each.before for each in work.errors)
    assert error(model) < 0.9 * before
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("pattern", ["all heads of layer 1", "all channels of layer 1"])
def test_a_block_without_units_is_left_as_it_is(pattern):
    work = local(pruned("qwen3", pattern), tiny_model("qwen3"))  # without biases
    work.run(never, lambda: None)
    gone = (1, "attention" if "heads" in pattern else "mlp")
    places = [(layer, block) for layer in LAYERS for block in BLOCKS]
    assert [(each.layer, each.block) for each in work.errors] == [
        place for place in places if place != gone
    ]


def test_weights_that_are_worse_on_held_out_windows_are_not_kept():
    model = tiny_model("llama").requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    work = local(model)  # the dense model has nothing to learn of itself
    work.run(never, lambda: None)
    assert all(each.after == each.before for each in work.errors)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_goes_on_bit_for_bit(dtype):
    teacher = tiny_model("llama").to(dtype)
    whole, half, other = (pruned().to(dtype) for _ in range(3))
    local(whole, teacher).run(never, lambda: None)
    work = local(half, teacher)
    work.run(lambda: True, lambda: None)
    assert work.done == 1
    work = local(half := pruned().to(dtype), teacher)
    saved = []
    work.run(never, lambda: saved.append(copy.deepcopy(work.state())))
    again = local(other, teacher)
    again.restore(*saved[0])
    assert again.done == 1
    again.run(never, lambda: None)
    assert again.errors == work.errors
    assert {p.dtype for p in other.parameters()} == {dtype}
    for one, two in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
