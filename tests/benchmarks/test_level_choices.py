"""The script that compares ways to choose the units of levels."""

import pytest
import torch

from helpers.experiments_toy import ROOT, load
from pgprune.budget.problem import Problem
from pgprune.repair.fit_levels import fit_levels


@pytest.mark.slow  # removes all channels of the built-in model one by one, four times
@torch.no_grad()
def test_all_ways_keep_equally_many_and_the_first_is_that_of_levels(tmp_path):
    script = load(ROOT / "benchmarks" / "level_choices.py")
    problem = Problem.make(granularity="values+channels", budget="parameters", prune_rate=0.5)
    windows, units = problem.stream.head(4), problem.units
    ways = script.fit(problem, windows)
    assert list(ways) == [
        f"{order}, {tokens}"
        for tokens in ("relative", "as they are")
        for order in ("greedy", "leverage")
    ]
    sizes = [group.stop - group.start for group in units.groups]
    for way in ways.values():
        assert units.kept_counts(way.mask[None])[0].tolist() == [size // 2 for size in sizes]
    grid = [torch.tensor([size, size // 2, 0]) for size in sizes]
    levels = fit_levels(problem.lm, windows, grid, tmp_path)
    choice = torch.ones(len(units.groups), dtype=torch.int64)
    first = ways["greedy, relative"]
    assert torch.equal(first.mask, levels.masks(choice[None])[0])
    right = levels.repair(choice)
    assert first.repair.weights.keys() == right.weights.keys()
    for key, weight in right.weights.items():
        assert torch.allclose(first.repair.weights[key], weight, rtol=1e-4, atol=1e-5)
