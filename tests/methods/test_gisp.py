"""GISP step by step against autograd on plain models, and what its steps promise."""

import pytest
import torch

from helpers.salience import naive_scores, salience
from helpers.tiny import masked_lm, tiny_model, tokens, toy_problem, zeroed
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem
from pgprune.methods import METHODS, MethodConfig, Pruned
from pgprune.methods.gisp import normalised_scores

WINDOWS = tokens(batch=4, length=10)


def problem_of(model, rate=0.4, kind="parameters", **options) -> Problem:
    problem = toy_problem(masked_lm(model, **options))
    return Problem(**vars(problem) | {"budget": Budget(problem.units, rate, kind)})


def gisp(problem: Problem, fraction: float = 0.1, **options) -> Pruned:
    config = MethodConfig("gisp", gisp_fraction=fraction, **options)
    return METHODS["gisp"](problem, WINDOWS, 0, config)


def naive_normalised(model, units, mask) -> torch.Tensor:
    """Sums of |w g| in the model whose pruned weights are zero, over sizes written out by hand."""
    plain = zeroed(model, units, mask)
    scores = naive_scores(plain, units, salience(plain, WINDOWS, "element-first"))
    channels = units.kind == units.kinds.index("channels")
    projections = 2 if model.config.model_type == "opt" else 3
    width = projections * 12 * units.channel_block  # a layer has 12 channels
    return torch.where(channels, scores / width, scores / units.cost)


def test_scores_of_a_pruned_model_are_those_of_autograd(model):
    lm = masked_lm(model, channel_block=3)
    mask = lm.units.ones()
    mask[[0, 3, 7]] = 0  # a kv group and a block of channels of the first layer, one of the second
    found = normalised_scores(lm, WINDOWS, mask)
    expected = naive_normalised(model, lm.units, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)  # float32 norms
    assert not found[mask == 0].any() and bool((found[mask == 1] > 0).all())


@pytest.mark.parametrize("kind", ["parameters", "units", "per-kind"])
def test_each_step_prunes_the_lowest_of_the_model_that_is_left(kind):
    model = tiny_model("qwen2")
    problem = problem_of(model, kind=kind)
    units, budget = problem.units, problem.budget
    mask, last = units.ones(), units.layer == 2
    for rate in (0.1, 0.2, 0.3, 0.4):
        scores = naive_normalised(model, units, mask)
        scores = scores.masked_fill(mask == 0, -1).masked_fill(last, torch.inf)
        kept = budget.with_rate(rate).round(scores)
        mask &= kept
    pruned = gisp(problem)
    left = kept & mask
    assert torch.equal(pruned.mask & mask, left) and float(budget.excess(pruned.mask[None])) == 0
    assert bool(pruned.mask[last].all()) and pruned.notes == {"steps": 4}
    returned = pruned.mask.bool() & ~left.bool()  # channels, into what no kv group fits
    assert not returned.any() or kind != "per-kind"
    assert units.cost[returned].sum() < units.cost.max()


def test_a_lower_rate_keeps_what_a_higher_one_keeps():
    model = tiny_model("llama")
    low, high = (gisp(problem_of(model, rate, "per-kind")).mask for rate in (0.2, 0.4))
    assert bool((low >= high).all()) and low.sum() > high.sum()


def test_steps_see_what_earlier_steps_have_pruned():
    problem = problem_of(tiny_model("mistral"), 0.5, "units")
    assert not torch.equal(gisp(problem, 0.05).mask, gisp(problem, 0.5).mask)


def test_it_reads_the_windows_forward_and_backward_in_each_step():
    problem = problem_of(tiny_model("llama"))
    gisp(problem, 0.2)
    assert problem.lm.meter.tokens == 2 * 2 * WINDOWS.numel()


def test_the_last_layer_and_the_first_tenth_stay_whole_or_not():
    model = tiny_model("llama", num_hidden_layers=10)
    problem = problem_of(model, 0.75)
    whole = (problem.units.layer == 0) | (problem.units.layer == 9)
    assert bool(gisp(problem, 0.25).mask[whole].all())
    with pytest.raises(PruningError, match=r"rate 0\.85 .*0\.8"):
        gisp(problem_of(model, 0.85))
    unprotected = gisp(problem_of(model, 0.85), 0.425, protect_layers=False)
    assert not bool(unprotected.mask[whole].all())


def test_gradients_that_overflow_are_an_error_in_one_sentence():
    model = tiny_model("llama", torch.float32)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight *= 1e38
    with pytest.raises(PruningError, match="gradients of the loss overflow .* float32"):
        gisp(problem_of(model))
