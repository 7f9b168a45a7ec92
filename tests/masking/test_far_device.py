"""Metrics, methods and repairs on a GPU that is not there find what they find on the host.

An operation on tensors of both places fails there as it would on a real GPU.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.far_device import FarDevice, take
from helpers.mixtures import family_with
from helpers.tiny import masked_lm, tiny_model, tokens, toy_problem
from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem
from pgprune.methods import METHODS
from pgprune.methods.common.base import MethodConfig
from pgprune.metrics import METRICS
from pgprune.repair.fit import REPAIRS, fit_repair
from pgprune.repair.repair import repaired

DEPTH = ("shortgpt", "sleb", "layerwise-ppl", "layerwise-taylor")
CONFIG = MethodConfig(
    method_samples=16,
    learning_timesteps=1,
    bonsai_masks=10,
    bonsai_windows=8,
    bonsai_fraction=0.25,
    gisp_fraction=0.25,
)


def problem_of(name: str, far: bool) -> Problem:
    """A problem that suits a metric, method or repair, of a grouped model with biases."""
    method = METHODS[name if name in METHODS else "wanda-sp"]
    granularity, kind = method.granularities[0], method.budgets[0]
    lm = masked_lm(
        tiny_model(family_with(granularity), torch.float32), granularity, executor="sliced"
    )
    if far:
        take(lm.model)
    problem = toy_problem(lm, batch=8)  # few steps, of which each costs much there
    budget = Budget(lm.units, 0.33 if name in DEPTH else 0.5, kind)
    return replace(problem, budget=budget)


@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"bonsai"}))  # it is below, quicker
def test_metrics(name):
    def mask(problem: Problem) -> torch.Tensor:
        windows = problem.stream.head(8)
        return METRICS[name](problem.lm, windows, problem.budget, 0).mask(problem.budget).cpu()

    near = mask(problem_of(name, far=False))
    with FarDevice():
        assert torch.equal(mask(problem_of(name, far=True)), near)


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    def found(problem: Problem) -> Any:
        pruned = METHODS[name](problem, problem.stream.head(16), 0, CONFIG)
        return pruned.slices.rotations if pruned.mask is None else pruned.mask.cpu()

    near = found(problem_of(name, far=False))
    with FarDevice():
        far = found(problem_of(name, far=True))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-3)


@pytest.mark.parametrize("how", REPAIRS)
def test_repairs(how):
    def losses(problem: Problem) -> torch.Tensor:
        noise = torch.rand(problem.units.n, generator=torch.Generator().manual_seed(0))
        mask = problem.budget.round(noise)
        with repaired(problem.lm, fit_repair(problem.lm, mask, problem.stream.head(16), how)):
            return problem.lm.losses(mask[None], tokens()).cpu()

    near = losses(problem_of(how, far=False))
    with FarDevice():
        far = losses(problem_of(how, far=True))
    torch.testing.assert_close(far, near, rtol=1e-4, atol=1e-4)
