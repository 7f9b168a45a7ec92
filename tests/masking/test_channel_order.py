"""The order of the channels of experts changes nothing, and the first ones matter most."""

import copy

import pytest
import torch

from helpers.mixtures import MIXTURES, mlp_inputs
from helpers.tiny import tiny_model, tokens
from pgprune.masking.channel_order import channel_energies, fit_order, order_channels
from pgprune.models.families import family_of

WINDOWS = tokens(batch=6, length=12)


@pytest.fixture(params=list(MIXTURES))
def mixture(request):
    return tiny_model(request.param)


def test_an_ordered_model_computes_what_it_did_with_the_first_channels_on_top(mixture):
    ordered = copy.deepcopy(mixture)
    order = fit_order(mixture, WINDOWS)
    order_channels(ordered, order)
    with torch.no_grad():  # some routers compute in float32
        torch.testing.assert_close(
            ordered(WINDOWS).logits, mixture(WINDOWS).logits, rtol=0, atol=1e-5
        )
    before, after = channel_energies(mixture, WINDOWS), channel_energies(ordered, WINDOWS)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one.sum(), other.sum(), rtol=1e-5, atol=0)
        assert bool((other[:, 1:] <= other[:, :-1] * (1 + 1e-5)).all())


@pytest.mark.parametrize("width", [6, 40])  # narrower and wider than the stream of 32
def test_energies_are_those_of_a_plain_computation(width):
    model = tiny_model("mixtral", intermediate_size=width)
    seen = mlp_inputs(model, WINDOWS)
    for i, found in enumerate(channel_energies(model, WINDOWS)):
        mlp = model.model.layers[i].mlp
        expected = torch.zeros(4, width).double()
        for token in seen[i].flatten(0, 1):
            best = (mlp.gate.weight @ token).softmax(0).topk(2)
            for expert, weight in zip(best.indices, best.values / best.values.sum(), strict=True):
                gate, up = (mlp.experts.gate_up_proj[expert] @ token).chunk(2)
                inner = weight * torch.nn.functional.silu(gate) * up
                columns = mlp.experts.down_proj[expert] * inner  # (D, F)
                expected[expert] += columns.square().sum(0).detach()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_an_mlp_as_wide_as_two_experts_is_dealt_out_to_both():
    model = tiny_model("glm4_moe", n_shared_experts=2)
    before = channel_energies(model, WINDOWS)[1][4:].flatten().sort(descending=True).values
    order_channels(model, fit_order(model, WINDOWS))
    after = channel_energies(model, WINDOWS)[1][4:]  # (2, F)
    torch.testing.assert_close(after.T.flatten(), before, rtol=1e-5, atol=0)


def test_parameters_are_as_before_when_energies_are_known(mixture):
    before = copy.deepcopy(mixture.state_dict())
    channel_energies(mixture, WINDOWS)
    assert all(torch.equal(before[name], part) for name, part in mixture.state_dict().items())
    experts = family_of(mixture.config).experts
    assert not any(layer.get_submodule(experts.router.rpartition(".")[0])._forward_pre_hooks
                   for layer in mixture.model.layers)  # fmt: skip
