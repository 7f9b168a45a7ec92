"""The script that measures how much the loss rises with the error of each layer."""

import pytest
import torch

from helpers.experiments_toy import ROOT, load
from pgprune.budget.level_grid import grid
from pgprune.budget.problem import Problem
from pgprune.repair.fit_levels import fit_levels


@pytest.fixture(scope="module")
def script():
    return load(ROOT / "benchmarks" / "layer_sensitivity.py")


def test_losses_are_none_for_the_dense_model_and_rise_with_what_is_pruned(script, tmp_path):
    problem = Problem.make(granularity="values+channels", budget="parameters", prune_rate=0.3)
    windows = problem.stream.head(6)
    kept, _ = grid(problem.budget)
    levels = fit_levels(problem.lm, windows[:4], kept, tmp_path / "levels")
    losses = script.Losses(problem, levels, windows[4:])
    dense = torch.zeros(len(levels.groups), dtype=torch.int64)
    assert losses(dense) == pytest.approx(0, abs=1e-4)
    for group in (0, 1):
        of_levels = losses.of_group(group)
        assert of_levels[0] == 0 and bool((of_levels.diff() >= 0).all()) and of_levels[-1] > 0
    nothing_lost = [torch.zeros(len(each.kept)) for each in levels.groups]
    cell = script._cell(problem, losses, nothing_lost, 0.3, True)
    assert float(cell.split()[0]) > 0
    table = script.by_layer(problem, losses, windows[:4])
    assert len(table.strip().splitlines()) == 2 + problem.units.layers
