"""FLAP and ShortGPT against the same numbers computed naively with plain Hugging Face models."""

import pytest
import torch

from helpers.inputs import inputs_of
from helpers.tiny import inputs_of_unit, layers_of, projections_of, tiny_model, tokens
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.metrics import METRICS
from pgprune.metrics.flap import dense_moments, flap_importance

WINDOWS = tokens(batch=6, length=12)


def masked(model, granularity="heads+channels", channel_block=1) -> MaskedLM:
    units = PruningUnits.of(model, granularity, channel_block)
    return MaskedLM(model, units, pass_tokens=30)  # several chunks of windows


def released(x: torch.Tensor) -> torch.Tensor:
    """The released code's fluctuation of inputs (K, T, inputs), as its loop computes it."""
    mean, total = torch.zeros(x.shape[-1]).double(), 0.0
    for k, window in enumerate(x, start=1):
        mean = mean * (k - 1) / k + window.mean(0) / k
        if k > 1:
            total = total + (k - 1) / k * ((window - mean) ** 2).sum(0)
    return total / (len(x) - 1)


def naive_flap(model, units, how) -> torch.Tensor:
    scores, inputs = [], inputs_of(model, WINDOWS)
    for group in units.groups:
        x = inputs[group.layer, group.projection]
        weight = projections_of(model, group.layer)[group.kind == "channels"].weight.detach()
        fluctuation = x.flatten(0, 1).var(0) if how == "variance" else released(x)
        score = fluctuation * weight.norm(dim=0) ** 2
        score = score if group.kind == "channels" else score**2
        standard = (score - score.mean()) / score.std()
        for unit in range(group.stop - group.start):
            scores.append(float(standard[inputs_of_unit(units, group, unit)].mean()))
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("how", ["variance", "released"])
@pytest.mark.parametrize(
    ("granularity", "channel_block"),
    [("heads+channels", 1), ("heads+channels", 3), ("values+channels", 1)],
)
def test_flap_is_standardised_fluctuation(model, how, granularity, channel_block):
    lm = masked(model, granularity, channel_block)
    expected = naive_flap(model, lm.units, how)
    budget = Budget(lm.units, 0.4, "parameters")
    importance = flap_importance(lm, dense_moments(lm, WINDOWS), how)
    torch.testing.assert_close(importance.scores, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(importance.mask(budget), budget.round(importance.scores))
    assert not importance.local


def test_flap_weighs_and_cuts_as_the_original_does():
    """All units sorted, a head counting (2g+2)d/3 channels, cut where the weight is closest."""
    model = tiny_model("llama", attention_bias=False, mlp_bias=False, intermediate_size=96)
    lm = masked(model)
    budget = Budget(lm.units, 0.4, "parameters")
    importance = METRICS["flap"](lm, WINDOWS, budget, 0)
    g, d = 2, 8
    heads = lm.units.kind == 0
    weight = torch.where(heads, (2 * g + 2) * d // 3, 1)
    assert torch.equal(lm.units.cost, weight * 3 * 32)
    order = importance.scores.argsort(descending=True)
    excess = (weight[order].cumsum(0) - 0.6 * weight.sum()).abs()
    threshold = importance.scores[order][excess.argmin()]
    mask = importance.mask(budget)
    differing = mask != (importance.scores > threshold)
    assert int(weight[differing].sum()) <= 2 * weight.max()  # what fits is still kept
    assert lm.units.prune_rate(mask) == pytest.approx(0.4, abs=0.01)


def test_inputs_that_never_vary_are_worth_nothing_but_harm_nothing():
    model = tiny_model("opt")
    with torch.no_grad():
        layers_of(model)[1].fc1.weight.zero_()
        layers_of(model)[1].fc1.bias.fill_(-1)
    lm = masked(model)
    scores = METRICS["flap"](lm, WINDOWS, Budget(lm.units, 0.4), 0).scores
    assert scores[(lm.units.layer == 1) & (lm.units.kind == 1)].tolist() == [0.0] * 12


def test_flap_needs_two_windows():
    lm = masked(tiny_model("llama"))
    with pytest.raises(PruningError, match="at least 2"):
        METRICS["flap"](lm, WINDOWS[:1], Budget(lm.units, 0.4), 0)
    assert lm.meter.tokens == 0


def test_shortgpt_is_one_minus_the_cosine_of_the_states_around_a_layer(model):
    around = {}
    hooks = [
        layer.register_forward_hook(
            lambda module, args, output, index=index: around.update(
                {index: (args[0], output[0] if isinstance(output, tuple) else output)}
            )
        )
        for index, layer in enumerate(layers_of(model))
    ]
    with torch.no_grad():
        model(WINDOWS)
    for hook in hooks:
        hook.remove()
    expected = [
        1 - float(((x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1)).mean())
        for x, y in (around[index] for index in range(3))
    ]
    lm = masked(model, "layers")
    budget = Budget(lm.units, 0.4)
    importance = METRICS["shortgpt"](lm, WINDOWS, budget, 0)
    assert importance.scores.tolist() == pytest.approx(expected, abs=1e-6)
    assert importance.mask(budget).tolist() == [int(x == max(expected)) for x in expected]
    assert lm.meter.tokens == WINDOWS.numel()
