"""What blocks add to the residual stream, and the outputs that would add what is wanted."""

import pytest
import torch

from helpers.tiny import layers_of, tiny_model, tokens
from pgprune.models.families import family_of
from pgprune.models.residual import (
    added,
    additions,
    adds_its_output,
    in_the_stream,
    slope,
    wanted_output,
)

FAMILIES = ["llama", "gemma3_text", "granite", "olmo2"]
KINDS = ["heads", "channels"]


@pytest.fixture(params=FAMILIES)
def layer_and_family(request: pytest.FixtureRequest):
    model = tiny_model(request.param)
    return layers_of(model)[1], family_of(model.config)


def outputs(count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 32, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_both_blocks_add_is_what_the_layer_adds(family):
    model = tiny_model(family)
    with additions(layers_of(model)[1], family_of(model.config)) as parts:
        states = model(tokens(), output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[1] + sum(parts), states[2], rtol=0, atol=1e-12)
    assert not layers_of(model)[1].self_attn.o_proj._forward_hooks


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_wanted_output_adds_what_was_wanted(layer_and_family, kind):
    """Exactly where an output can, and nearer to it than before where none can."""
    layer, family = layer_and_family
    dense, other = outputs(), outputs() + 0.01 * outputs(10)[5:]
    wanted = added(layer, family, kind, other)
    found = wanted_output(layer, family, kind, wanted, dense)
    before, after = (
        float((added(layer, family, kind, output) - wanted).norm()) for output in (dense, found)
    )
    assert after < 0.2 * before
    same = wanted_output(layer, family, kind, added(layer, family, kind, dense), dense)
    torch.testing.assert_close(same, dense)


@torch.no_grad()
def test_an_output_without_a_gain_stays():
    """Division by a gain of 0, or almost 0, would ask for outputs that drown the others."""
    model = tiny_model("gemma3_text")
    layer, family = layers_of(model)[1], family_of(model.config)
    layer.post_feedforward_layernorm.weight[:2] = torch.tensor([-1.0, -0.999])  # gains 0, 0.001
    dense = outputs()
    found = wanted_output(layer, family, "channels", outputs(10)[5:], dense)
    assert torch.equal(found[:, 0], dense[:, 0])
    assert float((found - dense)[:, 1].abs().max()) < 0.2 * float((found - dense).abs().max())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_slope_and_gains_are_the_derivative_across_the_output(layer_and_family, kind):
    layer, family = layer_and_family
    dense, step = outputs(), 1e-3
    across = outputs(10)[5:]
    across -= (across * dense).sum(-1, keepdim=True) / dense.square().sum(-1, keepdim=True) * dense
    moved, still = (added(layer, family, kind, y) for y in (dense + step * across, dense))
    gains = in_the_stream(layer, family, kind, torch.eye(32, dtype=torch.float64))
    expected = (across @ gains.T) * slope(layer, family, kind, dense)
    torch.testing.assert_close((moved - still) / step, expected, rtol=0.01, atol=0.01)
    if adds_its_output(family, kind):
        torch.testing.assert_close(expected, across)
