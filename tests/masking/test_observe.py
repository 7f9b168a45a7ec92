"""Looking into a masked model: what its projections get, and that it stays as it is."""

import copy

import pytest
import torch

from helpers.far_device import FarDevice, take
from helpers.inputs import inputs_of
from helpers.masks import patterns
from helpers.tiny import (
    VOCABULARY,
    layers_of,
    masked_lm,
    projections_of,
    tiny_model,
    tokens,
    zeroed,
)
from pgprune.masking.executors import EXECUTORS
from pgprune.masking.masked_lm import MaskedLM


def plain_inputs(model, ids) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The inputs of the output and down projections of each layer, in a plain forward pass."""
    seen = inputs_of(model, ids)
    return [(seen[layer, "heads"], seen[layer, "channels"]) for layer in range(len(seen) // 2)]


def observed(lm: MaskedLM, mask, ids) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        tuple(torch.cat(part) for part in zip(*observation.inputs, strict=True))
        for observation in lm.observe(mask, ids)
    ]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_observe_sees_what_the_projections_of_the_dense_model_get(model, executor):
    lm, ids = masked_lm(model, executor=executor), tokens(batch=3)
    torch.testing.assert_close(
        observed(lm, lm.units.ones(), ids), plain_inputs(model, ids), rtol=0, atol=1e-12
    )


def test_states_of_all_the_text_are_kept_on_the_host(model):
    ids = tokens(batch=3)
    lm = masked_lm(model, executor="sliced", pass_tokens=18)  # two chunks
    mask = (torch.rand(lm.units.n, generator=torch.Generator().manual_seed(0)) < 0.6).byte()
    expected = [(seen.states, list(seen.inputs)) for seen in lm.observe(mask, ids)]
    take(model)
    with FarDevice():
        for (states, inputs), seen in zip(expected, lm.observe(mask, ids), strict=True):
            assert [state.device.type for state in seen.states] == ["cpu", "cpu"]
            torch.testing.assert_close(seen.states, states, rtol=1e-12, atol=1e-12)
            for pair, there in zip(inputs, seen.inputs, strict=True):
                assert [part.device.type for part in there] == ["cuda", "cuda"]
                found = tuple(part.cpu() for part in there)
                torch.testing.assert_close(found, pair, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_observe_sees_dense_layers_on_the_outputs_of_masked_ones(case, executor):
    lm, mask = MaskedLM(case.model, case.units, executor), patterns(case.units)["some"]
    for layer, seen in enumerate(observed(lm, mask, case.ids)):
        before = torch.where(case.units.layer < layer, mask, 1)
        expected = plain_inputs(zeroed(case.model, case.units, before), case.ids)[layer]
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-10)


def test_observe_reads_a_mask_that_is_written_as_it_goes():
    lm, ids = masked_lm(tiny_model("llama")), tokens()
    written, given = lm.units.ones(), patterns(lm.units)["some"]
    seen = []
    for observation in lm.observe(written, ids):
        seen.append(next(observation.inputs))
        here = lm.units.layer == observation.layer
        written[here] = given[here]
    torch.testing.assert_close(seen, observed(lm, given, ids))


def test_observations_may_be_read_late_and_come_in_chunks():
    lm, ids = masked_lm(tiny_model("opt")), tokens(batch=5)
    mask = patterns(lm.units)["some"]
    whole = observed(lm, mask, ids)
    lm.pass_tokens = 2 * ids.shape[1]
    late = [list(observation.inputs) for observation in list(lm.observe(mask, ids))]
    assert [[len(attention) for attention, _ in chunks] for chunks in late] == [[2, 2, 1]] * 3
    joined = [tuple(torch.cat(part) for part in zip(*chunks, strict=True)) for chunks in late]
    torch.testing.assert_close(joined, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_was_read_is_not_computed_again(model, executor):
    lm, ids = masked_lm(model, executor=executor), tokens()
    runs = dict.fromkeys(["key", "down"], 0)

    def count(name):
        def hook(module, args):
            runs[name] += 1

        return hook

    layer, (_, down) = layers_of(model)[1], projections_of(model, 1)
    layer.self_attn.k_proj.register_forward_pre_hook(count("key"))
    down.register_forward_hook(lambda module, args, output: count("down")(module, args))
    for _ in range(2):
        for seen in lm.observe(lm.units.ones(), ids):
            list(seen.attention_inputs())
            assert len(list(seen.inputs)) == len(list(seen.inputs)) == 1
    assert runs == {"key": 2, "down": 2}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_does_not_fit_is_computed_again(case, executor, monkeypatch):
    lm, mask = MaskedLM(case.model, case.units, executor), patterns(case.units)["some"]
    expected = observed(lm, mask, case.ids)
    monkeypatch.setattr("pgprune.masking.observation.KEPT_BYTES", 0)
    torch.testing.assert_close(observed(lm, mask, case.ids), expected, rtol=0, atol=1e-10)


def test_other_weights_of_attention_give_other_inputs_of_the_mlp():
    model, ids = tiny_model("llama"), tokens()
    lm = masked_lm(model)
    output = projections_of(model, 1)[0]
    dense, changed = output.weight, torch.nn.Parameter(2 * output.weight, requires_grad=False)
    found = []
    for seen in lm.observe(lm.units.ones(), ids):
        if seen.layer == 1:
            list(seen.inputs)
            output.weight = changed
        found += list(seen.inputs)
    torch.testing.assert_close(found, plain_inputs(model, ids), rtol=0, atol=1e-12)
    output.weight = dense


def test_dense_states_after_each_block_are_those_of_the_layers(model):
    lm, ids = masked_lm(model, pass_tokens=18), tokens(batch=3)  # two chunks
    after = {}
    for layer, _, states in lm.states(ids):
        after.setdefault(layer, []).append(states)
    blocks = lm.blocks(ids)
    for layer, (between, last) in enumerate(zip(blocks, blocks, strict=True)):
        torch.testing.assert_close(last, after[layer], rtol=0, atol=1e-12)
        assert not torch.equal(between[0], last[0])


def snapshot(model: torch.nn.Module) -> list:
    """Everything about a model that an evaluation could change."""
    modules = dict(model.named_modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules.values()]
    own = [sorted(m.__dict__) for m in modules.values()]
    heads = [getattr(layer.self_attn, "num_heads", None) for layer in layers_of(model)]
    identities = [id(p) for p in model.parameters()]
    return [list(modules), hooks, own, heads, identities]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_model_is_untouched(case, executor):
    lm = MaskedLM(case.model, case.units, executor)
    before, weights = snapshot(case.model), copy.deepcopy(case.model.state_dict())
    plain = case.model(case.ids).logits
    lm.losses(case.masks, case.ids)
    for observation in lm.observe(case.masks[1], case.ids):
        list(observation.inputs)
    assert snapshot(case.model) == before
    assert all(torch.equal(weights[name], p) for name, p in case.model.state_dict().items())
    assert torch.equal(case.model(case.ids).logits, plain)
    assert not any(p.requires_grad for p in case.model.parameters())


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_model_is_untouched_by_an_error_inside(case, executor, monkeypatch):
    lm = MaskedLM(case.model, case.units, executor)
    before = snapshot(case.model)
    (_, broken) = projections_of(case.model, 1)

    class Interrupted(Exception):
        pass

    def interrupt(inputs):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(broken, "forward", interrupt)
        for masks in (case.masks[:1], case.masks):
            with pytest.raises(Interrupted):
                lm.losses(masks, case.ids)
        with pytest.raises(Interrupted):
            for observation in lm.observe(case.masks[1], case.ids):
                list(observation.inputs)
    with pytest.raises(IndexError):
        lm.losses(case.masks, case.ids + VOCABULARY)
    assert snapshot(case.model) == before
    assert bool(lm.losses(case.masks, case.ids).isfinite().all())
