"""Layer-wise solvers against enumeration, and the methods made of them on every family."""

import copy
from itertools import combinations, product

import pytest
import torch

from helpers.inputs import inputs_of
from helpers.tiny import (
    layers_of,
    masked_lm,
    projections_of,
    tiny_model,
    tokens,
    toy_problem,
    zeroed,
)
from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem
from pgprune.methods import METHODS, MethodConfig
from pgprune.methods.osscar import remove_and_swap, remove_in_batches, swap
from pgprune.methods.spap import alternate, best_marks, exchange, relax_and_exchange
from pgprune.methods.ziplm import remove_greedily
from pgprune.metrics import METRICS
from pgprune.repair.least_squares import LeastSquares, SecondMoments
from pgprune.repair.repair import repaired
from pgprune.repair.sweep import Sweep

SOLVERS = ("fasp", "ziplm", "osscar", "spap")
SELECTIONS = (remove_greedily, remove_and_swap, relax_and_exchange)


def tokens_of(seed: int, inputs: int, outputs: int = 5) -> tuple[torch.Tensor, ...]:
    """Correlated inputs (200, inputs), targets (200, outputs) and dense weights, all random."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    mixed = normal(200, inputs) @ (torch.eye(inputs) + 0.3 * normal(inputs, inputs))
    x = (mixed.relu() if seed % 2 else mixed + 0.5) * normal(inputs).abs()
    weight = normal(outputs, inputs)
    return x, x @ weight.T + 0.1 * normal(200, outputs), weight


def random_squares(seed: int, units: int = 8, width: int = 1, **options) -> LeastSquares:
    x, y, weight = tokens_of(seed, units * width)
    moments = SecondMoments.of(weight)
    for rows, wanted in zip(x.split(30), y.split(30), strict=True):
        moments.add(rows[None], wanted[None])
    return LeastSquares(moments, weight, width, **{"damping": 0.01} | options)


def marked(units: int, *pruned: int) -> torch.Tensor:
    kept = torch.ones(units, dtype=torch.bool)
    kept[list(pruned)] = False
    return kept


def enumerated(squares: LeastSquares, keep: int) -> dict[tuple[int, ...], float]:
    """The error of every choice of units, by the choice of what to prune."""
    choices = list(combinations(range(squares.units), squares.units - keep))
    return {choice: squares.error(marked(squares.units, *choice)) for choice in choices}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("width", [1, 3])
def test_refit_and_error_are_those_of_lstsq(width, biased):
    x, y, dense = tokens_of(3, 8 * width)
    squares = random_squares(3, width=width, damping=0.0, biased=biased)
    kept = marked(8, 1, 2, 6)
    columns = x[:, kept.repeat_interleave(width)]
    rows = torch.cat([columns, torch.ones(200, biased)], dim=1)
    solution = torch.linalg.lstsq(rows, y).solution.T
    weight = squares.refit(kept)
    torch.testing.assert_close(
        weight[:, squares.inputs(kept)], solution[:, : columns.shape[1]], rtol=1e-8, atol=1e-8
    )
    assert not weight[:, squares.inputs(~kept)].any()
    if biased:
        torch.testing.assert_close(squares.bias(weight), solution[:, -1])
    left = y - rows @ solution.T
    assert squares.error(kept) == pytest.approx(float(left.square().sum()), rel=1e-8)


def test_damping_draws_to_the_dense_weights():
    x, y, dense = tokens_of(0, 8)
    near, far = (random_squares(0, damping=damping) for damping in (1e9, 1e-9))
    torch.testing.assert_close(near.refit(near.everything()), dense, rtol=1e-5, atol=1e-6)
    best = torch.linalg.lstsq(x, y).solution.T
    torch.testing.assert_close(far.refit(far.everything()), best, rtol=1e-5, atol=1e-6)


def swept(squares: LeastSquares, kept: torch.Tensor) -> Sweep:
    """The problem with a choice of units, by way of another one."""
    sweep = Sweep(squares)
    sweep.toggle(torch.tensor([1, 2]))
    sweep.toggle((~kept & sweep.kept).nonzero().flatten())
    sweep.toggle((kept & ~sweep.kept).nonzero().flatten())
    assert torch.equal(sweep.kept, kept)
    return sweep


@pytest.mark.parametrize("width", [1, 3])
def test_costs_and_gains_are_differences_of_errors(width):
    squares, kept = random_squares(1, width=width), marked(8, 0, 5, 6)
    error, sweep = squares.error(kept), swept(squares, kept)
    assert sweep.error == pytest.approx(error, rel=1e-9)
    costs, gains = sweep.costs(), sweep.gains()
    for unit in range(8):
        other = kept.clone()
        other[unit] = not kept[unit]
        change = squares.error(other) - error
        cost, gain = (change, -torch.inf) if kept[unit] else (torch.inf, -change)
        assert float(costs[unit]) == pytest.approx(cost, rel=1e-7)
        assert float(gains[unit]) == pytest.approx(gain, rel=1e-7)


@pytest.mark.parametrize("width", [1, 3])
def test_an_exchange_has_the_error_of_the_other_choice(width):
    squares, kept = random_squares(1, width=width), marked(8, 0, 5, 6)
    sweep = swept(squares, kept)
    for out, into in product([1, 2, 3, 4, 7], [0, 5, 6]):
        other = kept.clone()
        other[out], other[into] = False, True
        found = sweep.error_of_exchange(out, into)
        assert found == pytest.approx(squares.error(other), rel=1e-9)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_removal_removes_what_enumeration_finds_cheapest(seed, width):
    squares = random_squares(seed, width=width)
    pruned: list[int] = []
    for keep in range(7, 0, -1):
        left = [unit for unit in range(8) if unit not in pruned]
        errors = [squares.error(marked(8, *pruned, unit)) for unit in left]
        pruned.append(left[errors.index(min(errors))])
        expected = marked(8, *pruned)
        assert torch.equal(remove_greedily(squares, keep), expected)
        sweep = Sweep(squares)
        remove_in_batches(sweep, keep, stages=8)
        assert torch.equal(sweep.kept, expected)


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("keep", [0, 1, 7, 8])
def test_the_first_removal_is_the_best_and_all_or_nothing_works(select, keep):
    squares = random_squares(2)
    kept = select(squares, keep)
    assert kept.sum() == keep
    if keep == 7:
        errors = enumerated(squares, keep)
        assert torch.equal(kept, marked(8, *min(errors, key=errors.get)))


@pytest.mark.parametrize("seed", range(4))
def test_swaps_and_exchanges_only_lower_the_error(seed):
    squares = random_squares(seed, units=10, width=1 + seed % 2)
    worst = max(errors := enumerated(squares, 5), key=errors.get)
    start = marked(10, *worst)
    for improve in (lambda squares, kept: swap(swept(squares, kept)).kept, exchange):
        better = improve(squares, start)
        assert better.sum() == 5
        assert squares.error(better) < 0.7 * squares.error(start)
        again = improve(squares, better)
        assert squares.error(again) <= squares.error(better)
    assert torch.equal(start, marked(10, *worst))


@pytest.mark.parametrize("seed", range(12))
def test_the_penalty_method_is_within_5_percent_of_brute_force(seed):
    units, width = (6, 8, 9, 12)[seed % 4], 1 + seed % 3
    squares = random_squares(seed, units, width)
    for keep in (units // 4, units // 2, units - 2):
        best = min(enumerated(squares, keep).values())
        assert squares.error(relax_and_exchange(squares, keep)) <= 1.05 * best


@pytest.mark.parametrize("seed", range(6))
def test_the_objective_falls_at_every_half_step(seed):
    squares = random_squares(seed, units=10, width=1 + seed % 2)
    steps: dict[float, list[float]] = {}
    alternate(squares, 5, lambda rho, value: steps.setdefault(rho, []).append(value))
    assert len(steps) > 3
    for before, after_weights, after_marks in steps.values():
        assert before >= after_weights >= after_marks
    assert any(before > 1.001 * after for before, _, after in steps.values())


@pytest.mark.parametrize("total", [1, 3, 5, 6])
def test_the_best_marks_satisfy_the_conditions_of_optimality(total):
    masses = torch.tensor([0.0, 4.0, 0.3, 0.3, 100.0, 2.0], dtype=torch.float64)
    marks = best_marks(masses, total)
    assert float(marks.sum()) == pytest.approx(total)
    assert float(marks.min()) >= 0 and float(marks.max()) <= 1
    slope = marks * masses  # half the gradient: alike where the mark is inside, lower where it is 1
    inside = slope[marks < 1]
    if len(inside):
        torch.testing.assert_close(inside, inside.max().expand_as(inside))
        assert bool((slope[marks == 1] <= inside.max() + 1e-12).all())


def tiny_problem(model, granularity="heads+channels", **options) -> Problem:
    return toy_problem(masked_lm(model, granularity, **options))


def solve(method, problem):
    return METHODS[method](problem, WINDOWS, 0, MethodConfig(method))


WINDOWS = tokens(batch=6, length=20)


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("granularity", ["heads+channels", "values+channels"])
def test_methods_keep_each_layers_share_and_repair_what_they_keep(method, granularity, model):
    problem = tiny_problem(model, granularity)
    lm, units = problem.lm, problem.units
    pruned = solve(method, problem)
    mask, repair = pruned.mask, pruned.repair
    assert units.kept_shares(mask[None])[0].tolist() == [0.5] * len(units.groups)
    assert float(problem.budget.excess(mask[None])) == 0
    plain = zeroed(model, units, mask)
    for (layer, kind), weight in repair.weights.items():
        if kind == "up":
            linear = layers_of(plain)[layer].mlp.up_proj
        else:
            linear = projections_of(plain, layer)[kind == "channels"]
            assert torch.equal(weight == 0, linear.weight == 0)
        with torch.no_grad():
            linear.weight.copy_(weight)
            if linear.bias is not None:
                linear.bias.copy_(repair.biases[layer, kind])
    with torch.no_grad():
        expected = plain(WINDOWS).logits
    with repaired(lm, repair):
        torch.testing.assert_close(lm.logits(mask[None], WINDOWS)[0], expected)
    assert len(repair.weights) == 9 if method == "spap" and lm.family.gated else 6


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("granularity", ["heads", "channels"])
def test_methods_of_one_kind_leave_the_other_alone(method, granularity):
    problem = tiny_problem(tiny_model("qwen2"), granularity)
    pruned = solve(method, problem)
    assert {kind for _, kind in pruned.repair.weights} - {"up"} == {granularity}
    assert int(pruned.mask.sum()) == problem.units.n / 2


@pytest.mark.parametrize("method", SOLVERS)
def test_methods_prune_blocks_of_channels_and_round_as_the_budget_says(method):
    problem = tiny_problem(tiny_model("llama"), channel_block=3)
    assert problem.units.kept_shares(solve(method, problem).mask[None]).tolist() == [[0.5] * 6]
    problem = tiny_problem(tiny_model("llama"))
    budget = Budget(problem.units, 0.5, round_to=4)
    rounded = Problem(**vars(problem) | {"budget": budget})
    channels = problem.units.kind == problem.units.kinds.index("channels")
    kept = solve(method, rounded).mask[channels].view(3, 12).sum(1)
    assert set((kept % 4).tolist()) == {0}


@torch.no_grad()
def naive_fasp(model, units):
    """A plain copy, halved and refitted by lstsq projection by projection; its scores and mask."""
    model, scores, mask = copy.deepcopy(model), torch.zeros(units.n).double(), units.ones()
    for group in units.groups:
        linear = projections_of(model, group.layer)[group.kind == "channels"]
        x = inputs_of(model, WINDOWS)[group.layer, group.kind].flatten(0, -2)
        column = linear.weight.abs().sum(0) * x.norm(dim=0)
        score = torch.stack([part.sum() for part in column.chunk(group.stop - group.start)])
        scores[group.start : group.stop] = score
        kept = score > score.sort().values[len(score) // 2 - 1]
        mask[group.start : group.stop] = kept
        mean = x.mean(0) if linear.bias is not None else 0
        target, centred = (x - mean) @ linear.weight.T, x - mean
        index = kept.repeat_interleave(len(column) // len(score))
        ridge = (0.01 * centred.square().sum(0).mean()).sqrt()
        rows = torch.cat([centred[:, index], ridge * torch.eye(int(index.sum()))])
        wanted = torch.cat([target, ridge * linear.weight[:, index].T])
        fitted = torch.zeros_like(linear.weight)
        fitted[:, index] = torch.linalg.lstsq(rows, wanted).solution.T
        if linear.bias is not None:
            linear.bias += (linear.weight - fitted) @ mean
        linear.weight.copy_(fitted)
    return model, scores, mask


def test_fasp_is_wandas_columns_and_lstsq_one_projection_after_the_other(model):
    problem = tiny_problem(model)
    expected, scores, mask = naive_fasp(model, problem.units)
    pruned = solve("fasp", problem)
    assert torch.equal(pruned.mask, mask)
    torch.testing.assert_close(pruned.importance.scores, scores, rtol=1e-5, atol=0)
    again = METRICS["fasp"](problem.lm, WINDOWS, problem.budget, 0)  # which an agent starts from
    assert torch.equal(again.scores, pruned.importance.scores)
    with repaired(problem.lm, pruned.repair), torch.no_grad():
        logits = problem.lm.logits(mask[None], WINDOWS)[0]
        torch.testing.assert_close(logits, expected(WINDOWS).logits, rtol=0, atol=1e-5)
