"""Down projections of experts and what they get, whichever way a family stores them."""

import copy

import pytest
import torch

from helpers.mixtures import MIXTURES, with_experts
from helpers.tiny import tiny_model
from pgprune.masking.expert_downs import BIAS, DOWN, down_inputs, down_of, of_downs
from pgprune.models.families import family_of

STATES, (WEIGHTS, *_) = (
    torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for rows, columns in ((7, 32), (1, 7))
)


def experts_of(model):
    names = family_of(model.config).experts
    layer = model.model.layers[min(with_experts(model))]
    return names, layer.get_submodule(names.experts)


@pytest.mark.parametrize(
    ("family", "changes"),
    [(family, {}) for family in MIXTURES]
    + [("mixtral", {"intermediate_size": 70}), ("gpt_oss", {"intermediate_size": 70})],  # > 32
)
@torch.no_grad()
def test_an_expert_adds_the_product_of_its_down_projection_and_the_inputs(family, changes):
    names, experts = experts_of(tiny_model(family, **changes))
    before = copy.deepcopy(experts.state_dict())
    downs = {}
    for index in range(4):
        downs[index] = down_of(names, experts, index)
        found = down_inputs(names, experts, index, STATES, WEIGHTS) @ downs[index].T
        if names.scored:
            expected = names.outputs(experts, STATES * WEIGHTS[:, None], index)
        else:
            expected = WEIGHTS[:, None] * names.outputs(experts, STATES, index)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight, bias = of_downs(names, experts, downs)
    assert torch.equal(weight, before[DOWN])
    assert (bias is None) == (BIAS not in before)
    assert bias is None or torch.equal(bias, before[BIAS])
    assert all(torch.equal(before[name], part) for name, part in experts.state_dict().items())
    assert experts.num_experts == 4


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@torch.no_grad()
def test_others_become_zeros(family):
    names, experts = experts_of(tiny_model(family))
    weight, bias = of_downs(names, experts, {2: down_of(names, experts, 2)})
    assert [index for index in range(4) if weight[index].any()] == [2]
    assert bias is None or [index for index in range(4) if bias[index].any()] == [2]
