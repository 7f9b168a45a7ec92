"""Repairs of a mixture refit output projections, and down projections of kept experts."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from helpers.far_device import FarDevice, take
from helpers.masks import bound
from helpers.mixtures import MIXTURES, with_experts
from helpers.pruned import equal_layers
from helpers.tiny import masked_lm, tiny_model, tokens
from pgprune import PruningError
from pgprune.repair.damping import DAMPINGS
from pgprune.repair.fit import fit_repair
from pgprune.repair.refit import refit_layers
from pgprune.repair.repair import Repair, repaired
from pgprune.surgery.layers import prune

WINDOWS = tokens(batch=24, length=16)
DAMPING = 1e-3
STRONG = 0.3  # of many sweeps, which come to the solution sooner


def fitted(family, text=WINDOWS, granularity="experts", **options):
    lm = masked_lm(tiny_model(family), granularity, pass_tokens=100)
    mask = equal_layers(lm.units, experts=2, channels=4)
    return lm, mask, fit_repair(lm, mask, text, "least-squares", DAMPING, **options)


def heads_of(repair: Repair) -> Repair:
    parts = repair.weights, repair.biases
    return Repair(*({k: v for k, v in part.items() if k[1] == "heads"} for part in parts))


@pytest.mark.parametrize(
    ("family", "granularity"),
    [(family, "experts") for family in MIXTURES]
    + [(family, "experts+channels") for family in ("qwen3_moe", "llama4_text", "gpt_oss")],
)
def test_refitted_experts_make_up_for_pruned_ones_in_every_form_of_the_model(
    family, granularity, tmp_path
):
    lm, mask, repair = fitted(family, granularity=granularity)
    layers = {layer for layer, kind in repair.weights if kind == "experts"}
    assert layers == with_experts(lm.model).keys()
    dense = lm.logits(lm.units.ones()[None], WINDOWS)
    errors = []
    for found in (Repair(), heads_of(repair), repair):
        with repaired(lm, found):
            after = lm.logits(mask[None], WINDOWS)
        errors.append(float((after - dense).square().mean()))
    assert errors[2] < 0.95 * min(errors[:2]), "output projections alone gain less"
    repair.save(tmp_path / "repair.safetensors")
    found = Repair.load(tmp_path / "repair.safetensors")
    pruned = prune(lm.model, lm.units, mask, found)
    assert type(pruned) is type(lm.model)
    pruned.save_pretrained(tmp_path / "hf")
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float64, experts_implementation="eager"
    )
    for model in (pruned, loaded):
        with torch.no_grad():
            assert float((model(WINDOWS).logits - after[0]).abs().max()) <= bound(lm.model)


def plain_inputs(experts, index: int, states: torch.Tensor) -> torch.Tensor:
    """Inputs of an expert's down projection, with ones where it has a bias."""
    if not experts.is_transposed:
        gate, up = (states @ experts.gate_up_proj[index].T).chunk(2, dim=-1)
        return F.silu(gate) * up
    both = states @ experts.gate_up_proj[index] + experts.gate_up_proj_bias[index]
    return F.pad(experts._apply_gate(both), (0, 1), value=1.0)


@torch.no_grad()
def plain_solution(lm, mask) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights and biases of the first layer's three kept experts, by one joint least squares."""
    pruned = prune(lm.model, lm.units, mask)
    first, got, after = pruned.model.layers[0], [], []
    first.mlp.experts.register_forward_pre_hook(lambda module, args: got.append(args))
    for model in (pruned, lm.model):
        layer = model.model.layers[0]
        hook = layer.register_forward_hook(lambda module, args, out: after.append(out))
        model(WINDOWS)
        hook.remove()
    states, chosen, weights = got[0]
    missing = (after[1] - after[0]).flatten(0, 1)
    experts = first.mlp.experts
    parts, dense = [], []
    for index in range(3):
        scale = (weights * (chosen == index)).sum(1, keepdim=True)
        parts.append(scale * plain_inputs(experts, index, states))
        down = experts.down_proj[index]
        if experts.is_transposed:
            down = torch.cat([down.T, experts.down_proj_bias[index][:, None]], dim=1)
        dense.append(down)
    inputs = torch.cat(parts, dim=1)
    gram = inputs.T @ inputs
    gram = gram + STRONG * gram.diagonal().mean() * torch.eye(len(gram))
    joint = torch.cat(dense, dim=1) + torch.linalg.solve(gram, inputs.T @ missing).T
    downs = torch.stack(joint.chunk(3, dim=1))  # (3, D, inputs)
    return (downs[:, :, :-1].mT, downs[:, :, -1]) if experts.is_transposed else (downs, None)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_many_sweeps_come_to_one_joint_least_squares_of_all_experts(family):
    lm = masked_lm(tiny_model(family), "experts", pass_tokens=200)
    mask = equal_layers(lm.units, experts=3)
    expected, expected_bias = plain_solution(lm, mask)
    found = []

    def solve(projection):
        if projection.kind == "channels":
            found.append(projection.fit(STRONG, sweeps=40)["experts"])
        return {}

    refit_layers(lm, mask, WINDOWS, solve, "stream", mixtures=True)
    kept = mask[:4].bool()
    weight, bias = found[0]
    torch.testing.assert_close(weight[kept], expected, rtol=0, atol=1e-8)
    assert not weight[~kept].any()
    assert (bias is None) == (expected_bias is None)
    if bias is not None:
        torch.testing.assert_close(bias[kept], expected_bias, rtol=0, atol=1e-8)


def test_text_that_is_fitted_itself_asks_for_the_least_damping(heard):
    *_, found = fitted("mixtral", held_out=WINDOWS, relative=True)
    assert heard.notes[0].partition("weights: ")[2] == f"{min(DAMPINGS):g} in 5"
    *_, again = fitted("mixtral", relative=True)
    assert all(torch.equal(found.weights[key], again.weights[key]) for key in again.weights)
    assert found.weights.keys() == again.weights.keys()


def test_an_expert_that_no_token_reaches_keeps_its_weights():
    lm = masked_lm(tiny_model("gpt_oss"), "experts")
    mask = equal_layers(lm.units, experts=3)
    router, experts = lm.model.model.layers[1].mlp.router, lm.model.model.layers[1].mlp.experts
    (group,) = (g for g in lm.units.groups if (g.layer, g.kind) == (1, "experts"))
    index = int(mask[group.start : group.stop].nonzero()[0])
    with torch.no_grad():
        router.bias[index] = -1e4
    repair = fit_repair(lm, mask, WINDOWS, "least-squares")
    assert torch.equal(repair.weights[1, "experts"][index], experts.down_proj[index])
    assert torch.equal(repair.biases[1, "experts"][index], experts.down_proj_bias[index])


@pytest.mark.parametrize("granularity", ["heads", "blocks", "layers"])
def test_experts_make_up_for_other_units_too(granularity):
    lm = masked_lm(tiny_model("mixtral"), granularity)
    mask = lm.units.ones()
    group = next(group for group in lm.units.groups if group.layer == 1)
    mask[group.start] = 0
    repair = fit_repair(lm, mask, WINDOWS, "least-squares")
    layers = {layer for layer, kind in repair.weights if kind == "experts"}
    assert layers == ({2} if granularity == "layers" else {1, 2})
    with repaired(lm, repair):
        expected = lm.logits(mask[None], WINDOWS)[0]
    with torch.no_grad():
        error = prune(lm.model, lm.units, mask, repair)(WINDOWS).logits - expected
    assert float(error.abs().max()) <= 1e-10


@pytest.mark.parametrize("family", MIXTURES)
def test_nothing_is_refitted_where_nothing_is_pruned(family):
    lm = masked_lm(tiny_model(family), "experts")
    whole = lm.units.ones()
    assert not fit_repair(lm, whole, WINDOWS, "bias").biases
    assert not fit_repair(lm, whole, WINDOWS[:2], "least-squares").weights


def test_a_repair_of_other_experts_is_refused():
    lm, _, repair = fitted("mixtral")
    for other in (tiny_model("mixtral", intermediate_size=8), tiny_model("llama")):
        with pytest.raises(PruningError, match="of layer 0 are of another model"):
            with repaired(masked_lm(other, "layers"), repair):
                pass


def test_tokens_are_counted():
    lm, *_ = fitted("mixtral")
    assert lm.meter.tokens == (5 + 5) * WINDOWS.numel()
    lm, *_ = fitted("mixtral", held_out=WINDOWS[:4])
    assert lm.meter.tokens == (5 + 14) * WINDOWS.numel() + (5 + 5) * WINDOWS[:4].numel()


def test_weights_on_a_gpu_are_the_same():
    lm, mask, near = fitted("gpt_oss", WINDOWS[:8])
    with FarDevice():
        take(lm.model)
        far = fit_repair(lm, mask, WINDOWS[:8], "least-squares", DAMPING)
    torch.testing.assert_close(far.weights, near.weights)
    torch.testing.assert_close(far.biases, near.biases)
