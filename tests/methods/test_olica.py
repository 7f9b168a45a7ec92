"""Olica against norms of plain models, layer by layer, and the shares that it leaves."""

import pytest
import torch

from helpers.tiny import layers_of, masked_lm, tiny_model, tokens, toy_problem, zeroed
from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem
from pgprune.methods import METHODS, MethodConfig

WINDOWS = tokens(batch=4, length=12)


def problem_of(model, rate=0.3, **budget) -> Problem:
    problem = toy_problem(masked_lm(model, "values+channels"))
    chosen = Budget(problem.units, rate, "parameters", **budget)
    return Problem(**vars(problem) | {"budget": chosen})


def olica(problem: Problem) -> torch.Tensor:
    return METHODS["olica"](problem, WINDOWS, 0, MethodConfig("olica")).mask


@torch.no_grad()
def scaled(model, layer: int, *paths: str) -> list[torch.Tensor]:
    """Weights of projections, each times the root of the mean square of its input."""
    found = []
    for path in paths:
        linear, seen = layers_of(model)[layer].get_submodule(path), []
        hook = linear.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        model(WINDOWS)
        hook.remove()
        found.append(linear.weight * seen[0].flatten(0, -2).square().mean(0).sqrt())
    return found


def naive_norms(model, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of a layer's value dimensions, (kv heads, head size), and of its channels."""
    opt = model.config.model_type == "opt"
    mlp = ["fc1", "fc2"] if opt else ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    output = "self_attn.out_proj" if opt else "self_attn.o_proj"
    value, out, *expand, down = scaled(model, layer, "self_attn.v_proj", output, *mlp)
    kv_heads = getattr(model.config, "num_key_value_heads", model.config.num_attention_heads)
    rows = value.norm(dim=1).view(kv_heads, -1)
    columns = out.norm(dim=0).view(kv_heads, -1, rows.shape[1]).mean(1)
    return rows + columns, sum(part.norm(dim=1) for part in expand) + down.norm(dim=0)


def test_the_lowest_norms_go_layer_by_layer(model):
    problem = problem_of(model)
    units, mask = problem.units, olica(problem)
    before = units.ones()
    layers = mask.split(torch.bincount(units.layer).tolist())
    for layer, here in enumerate(layers):
        values, channels = naive_norms(zeroed(model, units, before), layer)
        kept = here[: values.numel()].view(values.shape)
        for scores, bits in [*zip(values, kept, strict=True), (channels, here[values.numel() :])]:
            assert bits[scores.argsort(descending=True)].tolist() == sorted(bits, reverse=True)
        before[units.layer == layer] = here


def test_values_lose_half_the_rate_and_channels_the_rest():
    problem = problem_of(tiny_model("llama", head_dim=16), 0.25)
    units, (pool,) = problem.units, problem.budget.pools
    mask = olica(problem)
    values = mask[units.kind == 0].view(3 * 2, 16)
    assert values.sum(1).tolist() == [14] * 6  # of 16, an eighth less
    channels = units.kept_counts(mask[None])[0][1::2]
    assert channels.max() - channels.min() <= 1
    assert 0 <= pool.capacity - units.kept_parameters(mask) < units.cost.min()


def test_where_channels_do_not_suffice_values_lose_more():
    problem = problem_of(tiny_model("llama"), 0.8)
    units, mask = problem.units, olica(problem)
    values = mask[units.kind == 0].view(3 * 2, 8).sum(1)
    assert values.max() - values.min() <= 1 and values.max() < 8 * 0.6
    assert float(problem.budget.excess(mask[None])) == 0


@pytest.mark.parametrize("scope", ["global", "local"])
def test_every_scope_meets_the_budget_and_gives_one_answer(scope):
    masks = [olica(problem_of(tiny_model("qwen2"), 0.5, scope=scope)) for _ in range(2)]
    assert torch.equal(*masks)
    assert float(problem_of(tiny_model("qwen2"), 0.5).budget.excess(masks[0][None])) == 0
