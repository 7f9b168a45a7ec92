"""Bonsai: planted worth is recovered, sub-models are as described, the budget is met exactly."""

import pytest
import torch

from helpers.stories import perplexities_beside, stories_problem
from helpers.tiny import AdditiveLM, masked_lm, tiny_model, tokens, toy_problem, toy_units
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem
from pgprune.methods.bonsai import bonsai
from pgprune.methods.common.base import MethodConfig
from pgprune.metrics import METRICS
from pgprune.metrics.bonsai import find_candidates, sample_pairs, wanda_prior
from pgprune.repair.ridge import ridge

FEW = MethodConfig(bonsai_masks=10, bonsai_windows=2, bonsai_fraction=0.2)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_regression_recovers_a_planted_linear_model():
    features, slope = random(200, 30).round(), random(30, seed=1) - 0.5
    found = ridge(features, features @ slope + 7)
    torch.testing.assert_close(found, slope, rtol=0, atol=1e-3)


def test_noise_is_met_by_a_penalty():
    """It equals one of a reference grid, solved in the space of features, that beats the first."""
    features, slope = random(60, 40).round(), random(40, seed=1) - 0.5
    targets = features @ slope + 2 * (random(60, seed=2) - 0.5)
    found = ridge(features, targets, together=2)
    centred = features - features.mean(0)
    mean = torch.linalg.eigvalsh(centred @ centred.T).mean()
    references = [
        torch.linalg.solve(
            centred.T @ centred + 10.0**power * mean * torch.eye(40), centred.T @ targets
        )
        for power in range(-4, 5)
    ]
    errors = [float((reference - slope).norm()) for reference in references]
    distances = [float((reference - found).norm()) for reference in references]
    assert min(distances) < 1e-6
    assert errors[distances.index(min(distances))] < errors[0]


def test_more_features_than_observations_are_ordered_better_than_by_chance():
    features, slope = random(100, 400).round(), torch.zeros(400, dtype=torch.float64)
    slope[:20] = 1.0
    found = ridge(features, features @ slope)
    best = found.argsort(descending=True)[:20]
    assert int((best < 20).sum()) >= 8  # 1 by chance


def test_candidates_are_the_lowest_that_are_left_of_each_layer_and_kind():
    units = toy_units(layers=2, kv_heads=4, channels=20)
    prior, mask = random(units.n), (random(units.n, seed=1) < 0.7).to(torch.uint8)
    found = find_candidates(units, mask, prior, 0.1)
    for group in units.groups:
        left = [i for i in range(group.start, group.stop) if mask[i]]
        count = {"heads": 2, "channels": 4}[group.kind]  # twice 0.4 and 2, at least twice 1
        expected = sorted(sorted(left, key=lambda i: float(prior[i]))[:count])
        assert [int(i) for i in found if group.start <= i < group.stop] == expected


def test_sub_models_of_a_pair_lose_complementary_parts():
    units = toy_units(layers=2, kv_heads=3, channels=20)
    prior, mask = random(units.n), (random(units.n, seed=1) < 0.8).to(torch.uint8)
    candidates = find_candidates(units, mask, prior, 0.2)
    generator = torch.Generator().manual_seed(0)
    pairs = sample_pairs(units, mask, prior, candidates, 50, generator).view(50, 2, -1)
    fixed = torch.ones(units.n, dtype=torch.bool).index_fill(0, candidates, False)
    assert bool((pairs[:, :, fixed] == mask[fixed]).all())
    assert bool((pairs[:, :, candidates].sum(1) == 1).all())
    for group in units.groups:
        here = candidates[(candidates >= group.start) & (candidates < group.stop)]
        kept = pairs[:, :, here].sum(2)
        assert bool((kept.amax(1) == len(here) // 2 + 1).all())
        assert 15 < int((kept[:, 0] > kept[:, 1]).sum()) < 35  # of 50 coins


def test_what_has_a_low_prior_is_lost_together():
    units = toy_units(layers=1, kv_heads=2, channels=16)
    prior = torch.cat([torch.ones(2), torch.tensor([0.0, 0.0]), torch.full((13,), 0.9)]).double()
    prior = torch.cat([prior, torch.ones(1)])
    candidates = find_candidates(units, units.ones(), prior, 0.25)
    generator = torch.Generator().manual_seed(0)
    masks = sample_pairs(units, units.ones(), prior, candidates, 500, generator)
    together = (masks[:, 2] == masks[:, 3]).double().mean()
    assert float(together) > 0.6  # 3 in 7 if all 8 were alike


def test_planted_worth_decides():
    """All units are candidates of the one round and alike, so the mask is the best there is."""
    units = toy_units(layers=4, kv_heads=4, channels=12)
    worth = random(units.n)
    prior = torch.ones(units.n)
    problem = toy_problem(AdditiveLM(units, worth))
    importance = METRICS["bonsai"](
        *(problem.lm, problem.stream.head(8), problem.budget, 0),
        fraction=0.5,
        prior_of=lambda *_: prior,
    )
    assert torch.equal(importance.mask(problem.budget), problem.budget.round(worth))


def test_many_rounds_come_close_to_it_where_the_prior_is_right():
    units = toy_units(layers=4, kv_heads=4, channels=40)
    worth = random(units.n)
    problem = toy_problem(AdditiveLM(units, worth))
    importance = METRICS["bonsai"](
        *(problem.lm, problem.stream.head(8), problem.budget, 0),
        masks=100,
        prior_of=lambda *_: worth,
    )
    mask, best = importance.mask(problem.budget), problem.budget.round(worth)
    assert float(worth[mask == 0].sum()) < 1.1 * float(worth[best == 0].sum())


def test_the_budget_is_met_exactly_on_every_family(model):
    problem, ids = problem_of(model, 0.33), tokens(batch=4)
    pruned = bonsai(problem, ids, 0, FEW)
    assert pruned.notes == {"rounds": 2}
    assert torch.equal(pruned.mask, problem.budget.round(pruned.importance.scores))
    assert problem.lm.meter.tokens == 2 * (10 * 2 * ids.shape[1] + 2 * ids.numel())


@pytest.mark.parametrize("budget", ["units", "parameters"])
def test_any_budget_is_met_and_the_seed_decides(budget):
    model, ids = tiny_model("llama"), tokens(batch=4)
    scores = []
    for seed in (0, 0, 1):
        problem = problem_of(model, 0.33, budget)
        pruned = bonsai(problem, ids, seed, FEW)
        assert torch.equal(pruned.mask, problem.budget.round(pruned.importance.scores))
        scores.append(pruned.importance.scores)
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])


def test_the_prior_of_a_dense_model_is_wandas_of_its_first_layer(model):
    """Which is scored before anything is pruned."""
    problem, ids = problem_of(model, 0.5), tokens(batch=4)
    wanda = METRICS["wanda-sp"](problem.lm, ids, problem.budget, 0).scores
    first = problem.units.layer == 0
    prior = wanda_prior(problem.lm, problem.units.ones(), ids)
    torch.testing.assert_close(prior[first], wanda[first])


def test_too_few_windows_are_refused(model):
    with pytest.raises(PruningError, match="bonsai_windows 8 .* 2 "):
        bonsai(problem_of(model, 0.5), tokens(batch=2), 0, MethodConfig())


@pytest.mark.slow
def test_it_beats_wanda_and_random(assets):
    problem = stories_problem(assets)
    mask = bonsai(problem, problem.stream.head(64), 0, MethodConfig(bonsai_masks=100)).mask
    found, wanda, random = perplexities_beside(problem, mask)
    assert found < wanda < random


def problem_of(model, rate: float, budget: str = "per-kind") -> Problem:
    """A problem around a model, without a stream."""
    lm = masked_lm(model)
    return Problem(lm, lm.units, Budget(lm.units, rate, budget), None, None, None, None)
