"""Differentiable masks, and the methods that learn masks by back-propagation."""

from dataclasses import replace

import pytest
import torch

from helpers.masks import patterns
from helpers.stories import perplexities_beside, stories_problem
from helpers.tiny import FEW, exact_norms, tiny_model, tokens
from pgprune.budget.problem import Problem
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.soft_losses import soft_losses
from pgprune.masking.units import PruningUnits
from pgprune.methods.common.base import MethodConfig
from pgprune.methods.common.learning import steps_for
from pgprune.methods.gumbel_softmax import gumbel_softmax, straight_through
from pgprune.methods.hard_concrete import hard_concrete, kept_shares, stretched

GRANULARITIES = ["heads+channels", "blocks", "layers"]
METHODS = pytest.mark.parametrize(
    "method", [gumbel_softmax, hard_concrete], ids=["gumbel", "concrete"]
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_at_zeros_and_ones_the_soft_loss_is_the_loss(model, granularity):
    units = PruningUnits.of(model, granularity)
    lm, ids = MaskedLM(model, units), tokens(batch=3)
    masks = patterns(units)
    expected = lm.losses(torch.stack(list(masks.values())), ids)  # (K, B)
    for row, (name, mask) in zip(expected, masks.items(), strict=True):
        error = (soft_losses(lm, mask.double(), ids) - row).abs().max()
        assert float(error) < 1e-6, name  # norms of transformers are float32 inside


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_its_gradient_is_that_of_finite_differences(model, granularity):
    units = PruningUnits.of(model, granularity)
    lm = MaskedLM(exact_norms(model, heads=True), units)
    mask = torch.rand(units.n, generator=generator(), dtype=torch.float64) + 0.2
    mask.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda mask: soft_losses(lm, mask, tokens()), mask, fast_mode=True
    )


def test_logits_of_many_tokens_are_computed_in_chunks():
    model = tiny_model("llama")
    units = PruningUnits.of(model, channel_block=4)
    lm, ids = MaskedLM(model, units), tokens(batch=20, length=12)
    mask = torch.rand(units.n, generator=generator(), dtype=torch.float64).requires_grad_()
    found = []
    for chunk in (None, 64):  # all at once; 64 at a time
        losses = soft_losses(lm, mask, ids, chunk=chunk)
        found.append(torch.cat([losses, *torch.autograd.grad(losses.sum(), mask)]))
    torch.testing.assert_close(found[0], found[1])


def test_it_counts_tokens_and_leaves_the_model_frozen_and_without_hooks(model):
    units = PruningUnits.of(model)
    lm, mask = MaskedLM(model, units), torch.ones(units.n, requires_grad=True)
    soft_losses(lm, mask, tokens()).sum().backward()
    assert lm.meter.tokens == 2 * tokens().numel()  # forward and backward
    assert mask.grad is not None and bool((mask.grad != 0).any())
    assert all(not p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_gumbel_masks_are_drawn_from_the_agents_policy():
    keep = torch.tensor([0.05, 0.3, 0.5, 0.9], dtype=torch.float64)
    logits = torch.logit(keep).repeat(20_000)
    for temperature in (0.4, 2.0):
        masks = straight_through(logits, temperature, generator()).view(-1, 4)
        assert set(masks.unique().tolist()) == {0.0, 1.0}
        torch.testing.assert_close(masks.mean(0), keep, rtol=0, atol=0.015)


def test_their_gradient_is_that_of_the_relaxed_mask():
    logits = torch.linspace(-2, 2, 7, dtype=torch.float64, requires_grad=True)
    straight_through(logits, 0.7, generator()).sum().backward()
    uniform = torch.rand(7, generator=generator(), dtype=torch.float64)
    relaxed = torch.sigmoid((logits + torch.log(uniform / (1 - uniform))) / 0.7)
    torch.testing.assert_close(logits.grad, (relaxed * (1 - relaxed) / 0.7).detach())


def test_hard_concrete_masks_are_above_zero_as_often_as_expected():
    """By the formula of Louizos et al.: 1 - P(stretched concrete <= 0)."""
    alpha = torch.tensor([-3.0, -1.0, 0.0, 2.0, 4.0], dtype=torch.float64)
    masks = stretched(alpha.repeat(20_000), generator()).view(-1, 5)
    zero = torch.sigmoid(2 / 3 * torch.logit(torch.tensor(0.1 / 1.2)) - alpha)
    torch.testing.assert_close((masks > 0).double().mean(0), 1 - zero, rtol=0, atol=0.01)
    assert float(masks.min()) == 0 and float(masks.max()) == 1
    assert 0.1 < float(((masks > 0) & (masks < 1)).double().mean()) < 0.5


@pytest.mark.parametrize("kind", ["per-kind", "parameters"])
def test_kept_shares_are_what_the_budget_counts(problem, kind):
    budget = type(problem.budget)(problem.units, 0.5, kind)
    alpha = torch.where(torch.rand(problem.units.n, generator=generator()) < 0.5, -50.0, 50.0)
    mask = (alpha > 0).to(torch.uint8)
    shares = kept_shares(alpha.double(), budget)
    assert float(shares.max()) == pytest.approx(float(budget.kept_share(mask[None])))


def fresh(problem: Problem) -> Problem:
    """The problem with a count of tokens and a stream of its own: 16 x 16 tokens a batch."""
    lm, stream = MaskedLM(problem.lm.model, problem.units), problem.stream.fork(0)
    stream.batch_size = 16
    return replace(problem, lm=lm, stream=stream)


@METHODS
def test_the_budget_is_met_and_the_cost_is_noted(problem, method):
    mine, windows = fresh(problem), problem.stream.head(4)
    config = MethodConfig(learning_timesteps=1)
    pruned = method(mine, windows, 0, config)
    assert steps_for(mine, 1) == 2
    assert torch.equal(pruned.mask, mine.budget.round(pruned.importance.scores))
    assert float(mine.budget.excess(pruned.mask[None])) == 0
    assert pruned.notes["steps"] == 2
    assert pruned.notes["learning_tokens"] == 1024
    assert mine.lm.meter.tokens - 1024 in (0, 2 * windows.numel())  # concrete, gumbel's metric
    assert pruned.notes["learning_seconds"] > 0
    assert pruned.notes["peak_memory_bytes"] > 2**20
    again = method(fresh(problem), windows, 0, config)
    assert torch.equal(again.importance.scores, pruned.importance.scores)


@METHODS
@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("granularity", ["channels", "layers"])
def test_all_families_and_granularities(problem, family, granularity, method):
    model = tiny_model(family, torch.float32)
    units = PruningUnits.of(model, granularity)
    budget = type(problem.budget)(units, 0.5)
    other = replace(fresh(problem), lm=MaskedLM(model, units), units=units, budget=budget)
    pruned = method(other, tokens(batch=4), 0, MethodConfig(learning_timesteps=1))
    assert int(pruned.mask.sum()) == units.n // 2


@pytest.mark.slow
@METHODS
def test_two_hundred_steps_beat_wanda_and_random(assets, method):
    problem = stories_problem(assets)
    windows = problem.stream.head(64)
    mask = method(problem, windows, 0, MethodConfig(learning_timesteps=200)).mask
    found, wanda, random = perplexities_beside(problem, mask)
    assert found < wanda < random
