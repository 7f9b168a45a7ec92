"""Tyr against plain formulas: the order of removal, expected errors, and a search that shifts."""

import copy
import tempfile
from random import Random

import pytest
import torch

from helpers.inputs import inputs_of
from helpers.tiny import masked_lm, projections_of, tiny_model, tokens, toy_problem
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem
from pgprune.methods import METHODS, MethodConfig, Pruned
from pgprune.methods.tyr import (
    Grid,
    choices,
    generations_for,
    levels_of,
    offspring,
    prune_to_levels,
    select,
)
from pgprune.repair.least_squares import LeastSquares, SecondMoments
from pgprune.repair.repair import repaired

WINDOWS = tokens(batch=6, length=20)


def problem_of(model, rate=1 / 3, granularity="heads+channels", **budget) -> Problem:
    problem = toy_problem(masked_lm(model, granularity))
    return Problem(**vars(problem) | {"budget": Budget(problem.units, rate, **budget)})


def tyr(problem: Problem, timesteps: int = 1, children: int = 4) -> Pruned:
    config = MethodConfig("tyr", learning_timesteps=timesteps, tyr_offspring=children)
    return METHODS["tyr"](problem, WINDOWS, 0, config)


def counts_of(problem: Problem, mask: torch.Tensor) -> tuple[int, ...]:
    return tuple(problem.units.kept_counts(mask[None])[0].int().tolist())


def squares_of(width: int, units: int = 6) -> tuple[LeastSquares, torch.Tensor, torch.Tensor]:
    """A problem, with its damped second moments H and G = H W^T written out."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, units * width, generator=generator).double() for n in (60, 4))
    moments = SecondMoments.of(weight)
    moments.add(x, x @ weight.T)
    h = x.T @ x + 0.5 * torch.eye(units * width)
    return LeastSquares(moments, weight, width, ridge=0.5), h, h @ weight.T


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("width", [1, 3])
def test_units_go_by_half_the_rise_and_what_they_give(width, batches):
    squares, h, g = squares_of(width)
    levels = levels_of(squares, torch.tensor([6, 4, 2, 0]), batches)
    left, removed = list(range(6)), []
    for _ in range(3):
        for _ in range(batches):
            index = [u * width + i for u in left for i in range(width)]
            inverse = h[index][:, index].inverse()
            weight = inverse @ g[index]  # (inputs, outputs)
            scores = []
            for place in range(len(left)):
                part = slice(place * width, (place + 1) * width)
                rise = weight[part].T @ inverse[part, part].inverse() @ weight[part]
                given = (weight[part] * g[index][part]).sum()
                scores.append(float(rise.trace() / 2 + given))
            worst = sorted(range(len(left)), key=scores.__getitem__)[: 2 // batches]
            removed += [left[place] for place in worst]
            left = [unit for unit in left if unit not in removed]
    assert levels.order.flip(0).tolist() == removed
    kept = [squares.everything().index_fill(0, torch.tensor(removed[:n]), False) for n in (2, 4)]
    expected = [squares.error(mask) for mask in kept]
    torch.testing.assert_close(levels.errors[1:3], torch.tensor(expected).double())


@torch.no_grad()
def test_levels_read_what_earlier_layers_give_at_the_level_they_have(model, tmp_path):
    problem = problem_of(model)
    units, lm = problem.units, problem.lm
    counts = counts_of(problem, problem.budget.local().round(torch.zeros(units.n)))
    grid = Grid.around(counts, problem.budget, 0)
    levels = prune_to_levels(lm, WINDOWS, counts, grid, tmp_path)
    plain = copy.deepcopy(model)
    expected = levels.repair(choices(levels, [counts])[0])
    for i, group in enumerate(units.groups):
        linear = projections_of(plain, group.layer)[i % 2]
        x = inputs_of(plain, WINDOWS)[group.layer, group.kind].flatten(0, -2)
        mean = x.mean(0) if linear.bias is not None else torch.zeros(())
        wanted, x = (x - mean) @ linear.weight.T, x - mean
        ridge = 0.01 * x.square().sum(0).mean()
        width = levels.groups[i].width
        lower = choices(levels, [tuple(grid.low)])[0]
        for choice in (choices(levels, [counts])[0], lower):
            (mask,) = levels.masks(choice[None])
            kept = mask[group.start : group.stop].repeat_interleave(width).nonzero().flatten()
            if len(kept) in (0, x.shape[1]):
                continue
            found = levels.repair(choice).weights[group.layer, group.kind]
            rows = torch.cat([x[:, kept], ridge.sqrt() * torch.eye(len(kept))])
            targets = torch.cat([wanted, ridge.sqrt() * linear.weight[:, kept].T])
            best = torch.linalg.lstsq(rows, targets).solution.T
            torch.testing.assert_close(found[:, kept], best, rtol=0, atol=1e-5)
            assert int((found != 0).any(0).sum()) == len(kept)
        if (key := (group.layer, group.kind)) in expected.weights:
            linear.weight.copy_(expected.weights[key])
        if key in expected.biases:
            linear.bias.copy_(expected.biases[key])


def test_levels_are_an_eighth_of_a_group_apart_and_then_a_half_of_that():
    problem = problem_of(tiny_model("llama", intermediate_size=64), granularity="channels")
    grids = [Grid.around((40, 8, 60), problem.budget, number) for number in range(5)]
    assert [grid.step for grid in grids] == [[step] * 3 for step in (8, 4, 2, 1, 1)]
    assert grids[0].kept[0].tolist() == [64, 56, 48, 40, 32, 24, 16, 8]
    assert grids[0].kept[1].tolist() == [64, 40, 32, 24, 16, 8, 0]
    assert grids[0].kept[2].tolist() == [64, 60, 52, 44, 36, 28]  # the dense one is not reached
    assert (grids[0].low, grids[0].high) == ([8, 0, 28], [64, 40, 60])
    rounded = problem_of(tiny_model("llama", intermediate_size=64), round_to=16)
    assert set(Grid.around((2, 32) * 3, rounded.budget, 3).step) == {1, 16}


def test_offspring_keep_the_sum_of_each_kind_and_stay_on_the_grid():
    problem = problem_of(tiny_model("llama", intermediate_size=64))
    parent = (1, 40, 2, 48, 1, 40)
    grid = Grid.around(parent, problem.budget, 0)
    children = offspring(parent, grid, 30, Random(0))
    assert len(set(children)) == 30 and parent not in children
    for child in children:
        assert sum(child[::2]) == sum(parent[::2]) and sum(child[1::2]) == sum(parent[1::2])
        assert all(count in kept for count, kept in zip(child, grid.kept, strict=True))
    moves = {sum(abs(a - b) for a, b in zip(c[1::2], parent[1::2], strict=True)) for c in children}
    assert moves <= {0, 16, 32, 48, 64} and len(moves) > 2  # 8 channels out and 8 in, up to 4 times


def test_where_nothing_can_move_there_are_no_offspring():
    problem = problem_of(tiny_model("llama", num_hidden_layers=1))
    grid = Grid.around((1, 8), problem.budget, 0)
    assert offspring((1, 8), grid, 4, Random(0)) == []
    assert counts_of(problem, tyr(problem, 4).mask) == (1, 8)


def test_the_parent_stays_unless_a_child_is_nearer_to_the_dense_model(tmp_path):
    problem = problem_of(tiny_model("qwen2"), granularity="channels")
    lm, parent = problem.lm, (8, 8, 8)
    levels = prune_to_levels(lm, WINDOWS, parent, Grid.around(parent, problem.budget, 0), tmp_path)
    ids = torch.cat([problem.stream.next() for _ in range(5 + 16)][5:])  # of the last stage
    dense = lm.logits(problem.units.ones()[None], ids)[0, :, :-1].log_softmax(-1)

    def divergence(counts: tuple[int, ...]) -> float:
        (choice,) = choices(levels, [counts])
        with repaired(lm, levels.repair(choice)):
            found = lm.logits(levels.masks(choice[None]), ids)[0, :, :-1].log_softmax(-1)
        return float((dense.exp() * (dense - found)).sum(-1).mean())

    for child in [(6, 8, 10), (10, 8, 6), (8, 10, 6)]:
        problem.stream.seek(0)
        with lm.refitted(levels.weight):
            best = select(problem, levels, [child], parent)
        assert best == min(parent, child, key=divergence)


def test_a_layer_that_does_nothing_loses_most():
    model = tiny_model("mistral")
    with torch.no_grad():
        projections_of(model, 1)[1].weight.zero_()
    problem = problem_of(model, granularity="channels")
    pruned = tyr(problem, timesteps=4)
    first, idle, last = counts_of(problem, pruned.mask)
    assert idle < min(first, last) and first + idle + last == 24
    assert pruned.notes["steps"] == 4
    assert torch.equal(tyr(problem, timesteps=4).mask, pruned.mask)


def test_generations_cost_what_the_timesteps_pay_for():
    problem = problem_of(tiny_model("llama"), granularity="channels")
    config = MethodConfig("tyr", learning_timesteps=2, tyr_offspring=4)
    assert generations_for(problem, config) == 2 * 1024 // (16 * (5 * 1 + 2 * 4 + 3 * 16))
    before = problem.lm.meter.tokens
    levels = 3 * WINDOWS.numel()  # observed by halves, and MLPs run again
    pruned = tyr(problem, timesteps=2)
    spent = problem.lm.meter.tokens - before
    assert spent == pruned.notes["learning_tokens"] <= 2 * 1024 + 2 * levels


def test_without_a_search_shares_are_equal_and_no_file_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    problem = problem_of(tiny_model("llama"))
    pruned = tyr(problem, timesteps=1, children=128)
    assert counts_of(problem, pruned.mask)[1::2] == (8, 8, 8) and pruned.notes["steps"] == 0
    assert set(pruned.repair.weights) >= {(layer, "channels") for layer in range(3)}
    assert not list(tmp_path.iterdir())


def test_a_budget_by_layer_is_refused_before_any_work():
    problem = problem_of(tiny_model("llama"), scope="local")
    with pytest.raises(PruningError, match="tyr .* scope local .* leave out --scope"):
        tyr(problem)
    assert problem.lm.meter.tokens == 0
