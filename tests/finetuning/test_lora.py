"""The adapters: trained as autograd says, merged exactly, resumed bit for bit."""

import copy
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.masks import patterns
from helpers.tiny import tiny_model, tokens
from pgprune import PruningError
from pgprune.finetuning.instructions import TrainingWindows
from pgprune.finetuning.lora import LoraConfig, LoraTrainer, projections, step_size
from pgprune.masking.units import PruningUnits
from pgprune.models.registration import sliced_classes
from pgprune.surgery.layers import prune
from pgprune.surgery.slice_model import sliced_config

peft = pytest.importorskip("peft")
FEW = {"batch_size": 4, "learning_rate": 1e-2}


def windows(number: int = 10) -> TrainingWindows:
    """Tokens of which some are not learned."""
    ids = tokens(number, 12)
    return TrainingWindows(ids, ids % 5 > 0, "text")


def pruned(family: str = "llama", pattern: str = "layer 0 and some"):
    model = tiny_model(family)
    units = PruningUnits.of(model)
    return prune(model, units, patterns(units)[pattern]).requires_grad_(False)


def trained(model, steps: int | None = None, seed: int = 0, **changes) -> LoraTrainer:
    trainer = LoraTrainer(model, windows(), LoraConfig(**FEW | changes), seed)
    while trainer.step < (trainer.total if steps is None else steps):
        trainer.advance()
    return trainer


def weights(trainer: LoraTrainer) -> dict[str, torch.Tensor]:
    """The adapters, copied."""
    tensors, _ = trainer.state()
    return {n: t.detach().clone() for n, t in tensors.items() if not n.startswith("optimizer")}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


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
        merged = trainer.merge()
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
    merged = trainer.merge()
    assert merged.state_dict().keys() == names
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(loaded(tokens()).logits, logits, rtol=0, atol=1e-5)
    assert (type(loaded).__module__.startswith("transformers.models")) == (pattern == "nothing")


def test_untrained_adapters_change_nothing():
    model = pruned()
    with torch.no_grad():
        expected = model(tokens()).logits
        assert torch.equal(trained(model, steps=0).merge()(tokens()).logits, expected)


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
    start = weights(LoraTrainer(again, data, LoraConfig(**FEW, rank=2, alpha=3.0), 0))
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


def test_it_learns():
    trainer = trained(pruned(), epochs=20)
    assert trainer.losses[-1] < 0.7 * trainer.losses[0]


def test_micro_batches_only_save_memory():
    whole, parts = (trained(pruned(), micro_batch_size=size) for size in (4, 1))
    assert whole.losses == pytest.approx(parts.losses)
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(parts)[name], rtol=0, atol=1e-6)


def test_an_epoch_uses_every_window_once():
    trainer = trained(pruned(), steps=0, epochs=2)
    assert trainer.total == 2 * 3
    seen = []
    for _ in range(3):
        seen += trainer._batch()[0].tolist()
        trainer.advance()
    assert sorted(seen) == sorted(windows().ids.tolist())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1 / 3, 2 / 3, 1, 3 / 4, 1 / 2, 1 / 4]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.8536, 0.5]),
    ],
)
def test_schedules(schedule, expected):
    config = LoraConfig(learning_rate=1.0, warmup=1 / 3, schedule=schedule)
    found = [step_size(config, step, 6) for step in range(len(expected))]
    assert found == pytest.approx(expected, abs=1e-4)


def test_bfloat16_autocast_is_close():
    model = pruned().float()
    full = trained(copy.deepcopy(model), steps=1)
    mixed = trained(model, steps=1, precision="bfloat16")
    assert mixed.losses[0] == pytest.approx(full.losses[0], rel=0.02)
    assert mixed.losses[0] != full.losses[0]


def test_everything_follows_the_seed():
    first, again, other = (trained(pruned(), dropout=0.5, seed=seed) for seed in (0, 0, 1))
    assert first.losses == again.losses != other.losses
    assert same(weights(first), weights(again))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    trained(pruned(), dropout=0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_goes_on_bit_for_bit():
    changes = {"epochs": 3, "dropout": 0.3}
    whole, half = trained(pruned(), **changes), trained(pruned(), steps=4, **changes)
    tensors, values = half.state()
    tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    other = trained(pruned(), steps=0, **changes)
    other.restore(tensors, copy.deepcopy(values))
    while other.step < other.total:
        other.advance()
    assert other.losses == whole.losses
    assert same(weights(other), weights(whole))


def test_a_loss_that_is_not_finite():
    model = pruned()
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = float("inf")
    with pytest.raises(PruningError, match="loss of step 1 is .*; choose a learning_rate below"):
        trained(model)


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
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        ({"schedule": "constant"}, "schedule must be one of cosine, linear"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(PruningError, match=message):
        LoraConfig(**change)
