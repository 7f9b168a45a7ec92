"""Metrics of experts against plain computations on the dense model."""

import pytest
import torch

from helpers.mixtures import MIXTURES, mlp_inputs, with_experts
from helpers.tiny import masked_lm, tiny_model, tokens
from pgprune.budget.budget import Budget
from pgprune.masking.channel_order import channel_energies
from pgprune.metrics import METRICS
from pgprune.metrics.initialization import initial_probabilities, metric_name

WINDOWS = tokens(batch=6, length=12)
WITHOUT_LOSSES = ["reap", "expert-frequency", "random", "magnitude"]


def plain_scores(model, name: str) -> list[list[float]]:
    """Scores of the experts of each layer, token by token."""
    seen = mlp_inputs(model, WINDOWS)
    scores = []
    for i, layer in enumerate(model.model.layers):
        if not hasattr(layer.mlp, "experts"):
            continue
        gains: list[list[float]] = [[] for _ in range(4)]
        for token in seen[i].flatten(0, 1):
            weights = (layer.mlp.gate.weight @ token).softmax(0)
            best = weights.topk(2)
            for expert, weight in zip(best.indices, best.values / best.values.sum(), strict=True):
                gate, up = (layer.mlp.experts.gate_up_proj[expert] @ token).chunk(2)
                output = layer.mlp.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
                gains[int(expert)].append(float(weight * output.norm()))
        count = {"reap": len, "expert-frequency": lambda each: WINDOWS.numel()}[name]
        value = {"reap": sum, "expert-frequency": len}[name]
        scores.append([value(each) / max(1, count(each)) for each in gains])
    return scores


@pytest.mark.parametrize("name", ["reap", "expert-frequency"])
@pytest.mark.parametrize("granularity", ["experts", "heads+experts"])
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_scores_are_those_of_a_plain_computation(family, granularity, name):
    model = tiny_model(family)
    lm = masked_lm(model, granularity, pass_tokens=30)  # several chunks of windows
    scores = METRICS[name](lm, WINDOWS, Budget(lm.units, 0.5), 0).scores
    experts = scores[lm.units.kind == lm.units.kinds.index("experts")]
    expected = torch.tensor(plain_scores(model, name), dtype=torch.float64).flatten()
    torch.testing.assert_close(experts, expected, rtol=0, atol=1e-6)  # routers use float32
    if granularity == "heads+experts":
        heads = masked_lm(model, "heads")
        wanda = METRICS["wanda-sp"](heads, WINDOWS, Budget(heads.units, 0.01, "units"), 0).scores
        torch.testing.assert_close(scores[lm.units.kind == 0][:2], wanda[:2])  # nothing before


@pytest.mark.parametrize("scope", ["global", "local", "uniform"])
@pytest.mark.parametrize("name", WITHOUT_LOSSES)
@pytest.mark.parametrize("family", MIXTURES)
def test_masks_and_starts_are_within_the_budget(family, name, scope):
    lm = masked_lm(tiny_model(family), "experts")
    budget = Budget(lm.units, 0.34, scope=scope)
    importance = METRICS[name](lm, WINDOWS, budget, 0)
    mask = importance.mask(budget)
    assert float(budget.excess(mask[None])) == 0
    assert bool((lm.units.kept_counts(mask[None])[0] >= lm.units.least).all())
    start = initial_probabilities(importance, budget)
    assert float(budget.excess(start[None])) <= 1e-9
    assert all(router.top_k == 2 for router in with_experts(lm.model).values())


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_with_tokens_score_and_tokens_go_to_as_many_as_they_use(family):
    lm = masked_lm(tiny_model(family), "experts")
    scores = METRICS["reap"](lm, WINDOWS[:1], Budget(lm.units, 0.5), 0).scores
    shares = METRICS["expert-frequency"](lm, WINDOWS[:1], Budget(lm.units, 0.5), 0).scores
    assert bool(((scores > 0) == (shares > 0)).all())
    for group in (group for group in lm.units.groups if group.stop > group.start):
        assert float(shares[group.start : group.stop].sum()) == pytest.approx(2)  # experts a token


def test_an_expert_without_tokens_scores_nothing():
    model = tiny_model("mixtral")
    model.model.layers[1].mlp.gate.weight.data.zero_()  # all tokens go to the same two
    lm = masked_lm(model, "experts")
    for name in ("reap", "expert-frequency"):
        scores = METRICS[name](lm, WINDOWS, Budget(lm.units, 0.5), 0).scores.view(3, 4)
        assert int((scores[1] == 0).sum()) == 2


@pytest.mark.parametrize("name", [*WITHOUT_LOSSES, "layerwise-ppl"])
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "glm4_moe"])
def test_experts_and_their_channels_are_scored_and_rounded_together(family, name):
    model = tiny_model(family)
    lm = masked_lm(model, "experts+channels")
    budget = Budget(lm.units, 0.4, scope="uniform")
    importance = METRICS[name](lm, WINDOWS, budget, 0)
    mask = importance.mask(budget)
    assert float(budget.excess(mask[None])) == 0
    assert lm.units.prune_rate(mask) >= 0.4
    start = initial_probabilities(importance, budget)
    assert float(budget.excess(start[None])) <= 1e-9
    alone = masked_lm(model, "experts")
    if name != "random":
        experts = METRICS[name](alone, WINDOWS, Budget(alone.units, 0.4), 0).scores
        torch.testing.assert_close(importance.scores[lm.units.kind == 0], experts)


def test_channels_are_worth_what_those_of_all_experts_add():
    lm = masked_lm(tiny_model("mixtral"), "experts+channels", channel_block=2)
    found = METRICS["reap"](lm, WINDOWS, Budget(lm.units, 0.4, scope="uniform"), 0).scores
    energies = channel_energies(lm.model, WINDOWS)[1].sum(0)  # (F,)
    expected = energies.view(3, 2).sum(1).sqrt()
    torch.testing.assert_close(found[(lm.units.layer == 1) & (lm.units.kind == 1)], expected)
    weights = lm.model.model.layers[1].mlp.experts
    size = weights.gate_up_proj.abs().sum((0, 2)).view(2, 3, 2).sum((0, 2))
    size = size + weights.down_proj.abs().sum((0, 1)).view(3, 2).sum(1)
    found = METRICS["magnitude"](lm, WINDOWS, Budget(lm.units, 0.4, scope="uniform"), 0).scores
    torch.testing.assert_close(found[(lm.units.layer == 1) & (lm.units.kind == 1)], size.detach())


def test_experts_start_from_the_loss_without_each():
    lm = masked_lm(tiny_model("qwen3_moe"), "experts")
    assert metric_name("auto", "experts") == metric_name("auto", "heads+experts")
    scores = METRICS[metric_name("auto", "experts")](lm, WINDOWS, Budget(lm.units, 0.5), 0).scores
    without = 1 - torch.eye(lm.units.n)
    expected = lm.losses(without, WINDOWS).mean(1)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-9)
