"""The adapters: trained as autograd says, merged exactly, resumed bit for bit."""

import copy
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.finetuning_toy import pruned, trained, weights, windows
from helpers.finetuning_toy import trainer as trainer_of
from helpers.masks import patterns
from helpers.tiny import tiny_model, tokens
from pgprune import PruningError
from pgprune.finetuning.parts import LoraConfig, projections
from pgprune.masking.units import PruningUnits
from pgprune.models.registration import sliced_classes
from pgprune.surgery.layers import prune
from pgprune.surgery.slice_model import sliced_config

peft = pytest.importorskip("peft")


@pytest.mark.parametrize(
    ("granularity", "pattern"),
    [
        ("heads+channels", "nothing"),
        ("heads+channels", "some"),
        ("heads+channels", "layer 0 and some"),
        ("heads+channels", "all heads of layer 1"),
        ("values+channels", "some"),
    ],
)
def test_merged_is_what_was_trained(model, granularity, pattern):
    units = PruningUnits.of(model, granularity)
    model = prune(model, units, patterns(units)[pattern]).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changing = {f"{path}.weight" for path in projections(model)}
    trainer = trained(model)
    with torch.no_grad():
        expected = model(tokens()).logits
        merged = trainer.part.merge()
        torch.testing.assert_close(merged(tokens()).logits, expected, rtol=0, atol=1e-5)
    after = merged.state_dict()
    assert after.keys() == before.keys()
    assert {name for name in before if not torch.equal(before[name], after[name])} == changing
    assert type(merged) is type(model)
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert not any("lora" in name for name, _ in merged.named_modules())


@pytest.mark.parametrize("family", ["phi3", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("pattern", ["nothing", "layer 0 and some"])
def test_parts_of_fused_projections_are_trained_and_saved_fused(family, pattern, tmp_path):
    model = pruned(family, pattern)
    if pattern == "nothing":
        assert len(projections(model)) == 3 * (7 if family == "phi3" else 6)
    names = model.state_dict().keys()
    trainer = trained(model)
    with torch.no_grad():
        logits = model(tokens()).logits
    merged = trainer.part.merge()
    assert merged.state_dict().keys() == names
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(loaded(tokens()).logits, logits, rtol=0, atol=1e-5)
    assert (type(loaded).__module__.startswith("transformers.models")) == (pattern == "nothing")


def test_untrained_adapters_change_nothing():
    model = pruned()
    with torch.no_grad():
        expected = model(tokens()).logits
        assert torch.equal(trained(model, steps=0).part.merge()(tokens()).logits, expected)


def test_all_projections_that_are_left_are_adapted_also_of_sliced_models():
    llama = tiny_model("llama")
    assert len(projections(llama)) == 7 * 3
    units = PruningUnits.of(llama)
    headless = prune(llama, units, patterns(units)["all heads of layer 1"])
    assert len(projections(headless)) == 7 * 3 - 4
    opt = tiny_model("opt")
    for model in (opt, sliced_classes("opt").causal_lm(sliced_config(opt, 16))):
        assert len(projections(model)) == 6 * 3


def test_a_model_of_which_only_biases_are_left_is_refused():
    with pytest.raises(PruningError, match="no projections left"):
        trained(pruned(pattern="everything"))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")
def test_updates_are_those_of_autograd_and_adamw(model, monkeypatch):
    """Against the loss that Hugging Face computes, on all logits at once."""
    monkeypatch.setattr("pgprune.losses.tokens.LOGITS_BYTES", 1)
    reference = copy.deepcopy(model)
    trainer = trained(model.requires_grad_(False), steps=3, warmup=0.5, epochs=2, rank=2, alpha=3.0)
    config = peft.LoraConfig(r=2, lora_alpha=3.0, target_modules=projections(reference))
    adapted = peft.get_peft_model(reference, config).eval()
    data, parameters = windows(), {n: p for n, p in reference.named_parameters() if p.requires_grad}
    again = tiny_model(model.config.model_type)
    start = weights(trainer_of(again, rank=2, alpha=3.0))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=0.0)
    for step, rate in enumerate((1 / 4, 2 / 4, 3 / 4)):
        order = torch.from_numpy(np.random.default_rng([0, 0]).permutation(10))
        rows = order[4 * step : 4 * step + 4]
        labels = torch.where(data.trained[rows], data.ids[rows], -100)
        optimizer.zero_grad()
        loss = adapted(input_ids=data.ids[rows], labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-2 * rate
        optimizer.step()
        assert trainer.losses[step] == pytest.approx(float(loss.detach()), rel=1e-5)
    found = weights(trainer)
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=0, atol=2e-4)


def test_float16():
    with pytest.raises(PruningError, match="float16 overflows"):
        trained(pruned().half())


def test_peft_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PruningError, match=r"pip install 'pgprune\[finetune\]'"):
        trained(pruned())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank must be a whole number at least 1, not 0"),
        ({"dropout": 1.0}, "dropout must be .* below 1"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(PruningError, match=message):
        LoraConfig(**change)
