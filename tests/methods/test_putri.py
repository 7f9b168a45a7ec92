"""Putri against plain models: lstsq layer by layer, then kv groups by the loss, one by one."""

import copy

import pytest
import torch

from helpers.inputs import inputs_of
from helpers.tiny import masked_lm, projections_of, tiny_model, tokens, toy_problem, zeroed
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem
from pgprune.methods import METHODS, MethodConfig, Pruned
from pgprune.methods.putri import removal_costs
from pgprune.repair.least_squares import LeastSquares, SecondMoments
from pgprune.repair.repair import repaired

WINDOWS = tokens(batch=6, length=20)


def problem_of(model, rate=0.5, **budget) -> Problem:
    problem = toy_problem(masked_lm(model))
    chosen = Budget(problem.units, rate, "parameters", **budget)
    return Problem(**vars(problem) | {"budget": chosen})


def putri(problem: Problem) -> Pruned:
    return METHODS["putri"](problem, WINDOWS, 0, MethodConfig("putri"))


def loss_of(model) -> float:
    with torch.no_grad():
        return float(model(WINDOWS, labels=WINDOWS).loss)


def naive_costs(x: torch.Tensor, weight: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
    """Of each input: sums of squares of outputs by W^2, by what later inputs leave of it."""
    moments = x.T @ x + ridge * torch.eye(x.shape[1])
    outputs = (weight @ moments @ weight.T).diagonal()
    left = [1 / moments[j:, j:].inverse()[0, 0] for j in range(len(moments))]
    return outputs @ weight.square() * torch.stack(left)


@torch.no_grad()
def naive_channels(model, units, counts: list[int]) -> tuple[torch.nn.Module, torch.Tensor]:
    """A plain copy whose layers keep some channels and are refitted one by one, and its mask."""
    model, mask = copy.deepcopy(model), units.ones()
    channels = [group for group in units.groups if group.kind == "channels"]
    for group, keep in zip(channels, counts, strict=True):
        down = projections_of(model, group.layer)[1]
        x = inputs_of(model, WINDOWS)[group.layer, "channels"].flatten(0, -2)
        mean = x.mean(0) if down.bias is not None else torch.zeros(())
        centred = x - mean
        ridge = 0.01 * centred.square().sum(0).mean()
        kept = naive_costs(centred, down.weight, ridge).argsort(descending=True)[:keep]
        rows = torch.cat([centred[:, kept], ridge.sqrt() * torch.eye(keep)])
        wanted = torch.cat([centred @ down.weight.T, ridge.sqrt() * down.weight[:, kept].T])
        fitted = torch.zeros_like(down.weight)
        fitted[:, kept] = torch.linalg.lstsq(rows, wanted).solution.T
        if down.bias is not None:
            down.bias += (down.weight - fitted) @ mean
        down.weight.copy_(fitted)
        mask[group.start : group.stop] = 0
        mask[group.start + kept] = 1
    return model, mask


def test_it_is_lstsq_layer_by_layer_and_then_kv_groups_by_the_loss(model):
    problem = problem_of(model)
    units = problem.units
    heads = units.kind == units.kinds.index("heads")
    pruned = putri(problem)
    counts = units.kept_counts(pruned.mask[None])[0][1::2].int().tolist()  # of channels
    assert max(counts) - min(counts) <= 1
    plain, mask = naive_channels(model, units, counts)
    assert torch.equal(pruned.mask[~heads], mask[~heads])
    removed = []
    while units.kept_parameters(mask) > problem.budget.pools[0].capacity:
        found = {}
        for unit in (heads & mask.bool()).nonzero().flatten().tolist():
            tried = mask.clone()
            tried[unit] = 0
            found[unit] = loss_of(zeroed(plain, units, tried))
        for unit in sorted(found, key=found.get)[: units.shapes[0].kv_heads]:
            mask[unit] = 0
            group = units.groups[units.group[unit]]
            removed.append((group.layer, unit - group.start))
    assert torch.equal(pruned.mask, mask)
    assert pruned.notes == {"removed_kv_groups": removed}
    with repaired(problem.lm, pruned.repair):
        logits = problem.lm.logits(pruned.mask[None], WINDOWS)[0]
    with torch.no_grad():
        expected = zeroed(plain, units, mask)(WINDOWS).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert {kind for _, kind in pruned.repair.weights} == {"channels"}


@pytest.mark.parametrize("width", [1, 3])
def test_a_units_cost_is_that_of_its_inputs(width):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 6, generator=generator).double() for n in (50, 4))
    moments = SecondMoments.of(weight)
    moments.add(x, x @ weight.T)
    squares = LeastSquares(moments, weight, width, ridge=0.5)
    expected = naive_costs(x, weight, torch.tensor(0.5)).view(-1, width).sum(1)
    torch.testing.assert_close(removal_costs(squares), expected)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7, 0.85])
def test_the_budget_is_filled(rate):
    problem = problem_of(tiny_model("qwen2"), rate)
    units, (pool,) = problem.units, problem.budget.pools
    pruned = putri(problem)
    left = pool.capacity - units.kept_parameters(pruned.mask)
    assert 0 <= left < units.cost[pruned.mask == 0].min()
    again = putri(problem_of(tiny_model("qwen2"), rate))
    assert torch.equal(again.mask, pruned.mask)


def test_layers_keep_multiples_of_channels_where_that_is_asked_for():
    problem = problem_of(tiny_model("llama"), 0.4, round_to=4)
    kept = problem.units.kept_counts(putri(problem).mask[None])[0][1::2]
    assert set((kept % 4).tolist()) == {0}


def test_a_budget_by_layer_is_refused_before_any_work():
    problem = problem_of(tiny_model("llama"), scope="local")
    with pytest.raises(PruningError, match="putri .* scope local .* leave out --scope"):
        putri(problem)
    assert problem.lm.meter.tokens == 0
