"""Repair in hard cases: little text, dead inputs, overflow, mistakes; and what it costs."""

import weakref

import pytest
import torch

from helpers.masks import patterns
from helpers.tiny import masked_lm, projections_of, tiny_model, tokens
from pgprune import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.repair.fit import fit_repair
from pgprune.repair.least_squares import LeastSquares, SecondMoments
from pgprune.repair.repair import repaired

WINDOWS = tokens(batch=6, length=20)


def some(lm: MaskedLM) -> torch.Tensor:
    return patterns(lm.units)["some"]


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_too_little_text_needs_damping(family):
    lm = masked_lm(tiny_model(family))
    mask, few = some(lm), tokens(batch=1, length=5)
    with pytest.raises(PruningError, match="layer . are singular"):
        fit_repair(lm, mask, few, "least-squares", damping=0)
    found = fit_repair(lm, mask, few, "least-squares")
    with repaired(lm, found):
        assert bool(lm.losses(mask[None], few).isfinite().all())


def test_inputs_that_are_always_zero_leave_weights_alone():
    moments = SecondMoments.of(torch.zeros(3, 4))
    moments.add(torch.zeros(9, 4), torch.ones(9, 3))
    weight = torch.arange(12.0, dtype=torch.float64).view(3, 4)
    kept = torch.tensor([True, False, True, True])
    fitted = LeastSquares(moments, weight, damping=0.01).refit(kept)
    torch.testing.assert_close(fitted, weight * kept)


def test_activations_that_overflow_are_an_error():
    model = tiny_model("llama", torch.float32)
    with torch.no_grad():
        projections_of(model, 1)[0].weight.mul_(1e38)
    lm = masked_lm(model)
    with pytest.raises(PruningError, match="overflow .* dtype"):
        fit_repair(lm, some(lm), WINDOWS, "least-squares")
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"how": "prayer"}, "'prayer' is unknown; choose one of bias, least-squares, alternating"),
        ({"mask": torch.ones(5)}, r"must have shape \(42,\), got \(5,\)"),
        ({"windows": tokens(0, 9)}, "no calibration text"),
        ({"damping": -0.1}, "damping -0.1 is not a number from 0"),
        ({"damping": float("nan")}, "damping nan is not"),
    ],
)
def test_mistakes_are_named_before_any_work(changes, message):
    lm = masked_lm(tiny_model("llama"))
    given = {"mask": some(lm), "windows": WINDOWS, "how": "least-squares"} | changes
    with pytest.raises(PruningError, match=message):
        fit_repair(lm, **given)
    assert lm.meter.tokens == 0


def test_one_projections_second_moments_exist_at_a_time(model, monkeypatch):
    alive: list[weakref.ref] = []
    make = SecondMoments.of

    def watched(weight):
        assert not any(ref() for ref in alive)
        moments = make(weight)
        alive.append(weakref.ref(moments))
        return moments

    monkeypatch.setattr(SecondMoments, "of", watched)
    lm = masked_lm(model)
    fit_repair(lm, some(lm), WINDOWS, "least-squares")
    assert len(alive) >= 5


def test_tokens_are_counted():
    lm = masked_lm(tiny_model("llama"))
    fit_repair(lm, some(lm), WINDOWS, "bias")  # each layer: inputs for each projection, and its run
    assert lm.meter.tokens == 3 * WINDOWS.numel()
    fit_repair(lm, some(lm), WINDOWS, "least-squares")  # and inputs and run of the dense model's
    assert lm.meter.tokens == 8 * WINDOWS.numel()
