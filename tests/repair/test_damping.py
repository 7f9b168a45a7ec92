"""The damping that held-out text chooses: exact errors, the best choice, and thin data."""

import math

import pytest
import torch

from helpers.masks import patterns
from helpers.tiny import masked_lm, tiny_model, tokens
from pgprune import PruningError
from pgprune.repair.damping import DAMPINGS, best_damped
from pgprune.repair.fit import fit_repair
from pgprune.repair.least_squares import SecondMoments
from pgprune.repair.refit import refit_layers
from pgprune.repair.repair import repaired

WINDOWS = tokens(batch=6, length=20)
HELD_OUT = tokens(batch=4, length=20, seed=1)


def same(first, second) -> bool:
    """Two repairs are equal bit for bit."""
    for mine, theirs in ((first.weights, second.weights), (first.biases, second.biases)):
        assert mine.keys() == theirs.keys()
        if not all(torch.equal(mine[key], theirs[key]) for key in mine):
            return False
    return True


@pytest.mark.parametrize("biased", [False, True])
def test_the_error_of_moments_is_that_of_the_tokens(biased):
    x, y = torch.randn(2, 7, 5, dtype=torch.float64).unbind(0)
    weight, bias = torch.randn(5, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    moments = SecondMoments.of(weight)
    moments.add(x, y)
    bias = bias if biased else None
    expected = (torch.nn.functional.linear(x, weight, bias) - y).square().sum()
    assert moments.error(weight, bias) == pytest.approx(float(expected), rel=1e-12)


@torch.no_grad()
def error_on_tokens(projection, weight, bias) -> float:
    """The error of weights (outputs, kept inputs) on a projection's tokens, one after another."""
    kept = projection.kept_inputs
    rows = [
        torch.nn.functional.linear(inputs[..., kept], weight, bias) - targets
        for inputs, targets in projection.targets()
    ]
    return sum(float(row.square().sum()) for row in rows)


@pytest.mark.parametrize("family", ["llama", "mistral", "opt"])  # with biases and without
def test_the_choice_has_the_smallest_error_on_the_held_out_tokens(family):
    lm = masked_lm(tiny_model(family), pass_tokens=50)
    chosen = []

    def solve(projection):
        dense = projection.linear.weight[:, projection.kept_inputs]
        errors = {math.inf: error_on_tokens(projection.held_out, dense, projection.linear.bias)}
        for damping in DAMPINGS:
            problem = projection.least_squares_of_kept(damping)
            weight = problem.refit(problem.everything())
            bias = problem.bias(weight)
            errors[damping] = error_on_tokens(projection.held_out, weight, bias)
        found = best_damped(projection)
        assert found.damping == min(errors, key=errors.get)
        assert found.error == pytest.approx(errors[found.damping], rel=1e-9)
        chosen.append(found.damping)
        return {}

    refit_layers(lm, patterns(lm.units)["some"], WINDOWS, solve, "stream", HELD_OUT)
    assert len(chosen) == 6
    assert len(set(chosen)) > 1, "projections differ"


@pytest.mark.parametrize("how", ["least-squares", "alternating"])
def test_text_that_is_fitted_itself_asks_for_the_least_damping(how):
    lm = masked_lm(tiny_model("qwen2"))
    mask = patterns(lm.units)["some"]
    found = fit_repair(lm, mask, WINDOWS, how, held_out=WINDOWS)
    expected = fit_repair(lm, mask, WINDOWS, how, min(DAMPINGS))
    # Without inputs nothing can be fitted, so dense weights, of which none is kept, do as well.
    assert not expected.weights.pop((2, "heads")).any()
    assert same(found, expected)


def test_thin_data_is_damped_more_than_much(heard):
    lm = masked_lm(tiny_model("llama"))
    mask, other = patterns(lm.units)["some"], tokens(batch=20, length=20, seed=2)
    wanted = lm.logits(lm.units.ones()[None], other)

    def distance(found) -> float:
        with repaired(lm, found):
            return float((lm.logits(mask[None], other) - wanted).square().mean())

    held_out = tokens(batch=20, length=20, seed=1)
    thin, much = tokens(batch=1, length=20), tokens(batch=60, length=20)
    for text, worse in ((thin, 1.2), (much, 0.98)):
        chosen = fit_repair(lm, mask, text, "least-squares", held_out=held_out)
        assert same(chosen, fit_repair(lm, mask, text, "least-squares", held_out=held_out))
        assert distance(fit_repair(lm, mask, text, "least-squares")) > worse * distance(chosen)
    thinly, _, amply, _ = (note.partition("weights: ")[2] for note in heard.notes)
    assert thinly == "inf in 6" and "inf" not in amply


def test_tokens_are_counted_and_an_empty_text_is_refused():
    lm = masked_lm(tiny_model("llama"))
    mask = patterns(lm.units)["some"]
    fit_repair(lm, mask, WINDOWS, "least-squares", held_out=HELD_OUT)
    assert lm.meter.tokens == 5 * (WINDOWS.numel() + HELD_OUT.numel())
    with pytest.raises(PruningError, match="no calibration text"):
        fit_repair(lm, mask, WINDOWS, "least-squares", held_out=tokens(0, 9))
