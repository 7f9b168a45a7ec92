"""A repair ships where it does good on text that it is not fitted to, and nowhere else."""

import math

import pytest
import torch

from helpers.masks import patterns
from helpers.tiny import masked_lm, text_of, tiny_model
from pgprune.masking.perplexity import perplexity
from pgprune.repair.choice import ChosenRepair, chosen_repair
from pgprune.repair.config import RepairConfig, describe
from pgprune.repair.repair import Repair, repaired


@pytest.fixture(scope="module")
def text() -> torch.Tensor:
    """Windows that the tiny model draws, (120, 16): its own predictions are the best there."""
    letters = text_of(tiny_model("mistral", vocab_size=26), windows=120)
    return torch.tensor([ord(letter) - ord("a") for letter in letters]).view(-1, 16)


@pytest.fixture
def lm():
    return masked_lm(tiny_model("mistral", vocab_size=26))


def choose(lm, fit, held_out, **options):
    mask = patterns(lm.units)["some"]
    return chosen_repair(lm, mask, fit, held_out, RepairConfig(**options))


def test_a_repair_that_does_good_is_shipped_with_the_losses_that_say_so(lm, text, heard):
    found = choose(lm, text[:60], text[60:], repair="least-squares")
    mask = patterns(lm.units)["some"]
    assert found.losses["masked"] == pytest.approx(math.log(perplexity(lm, mask, text[60:])))
    assert found.repair is not None
    with repaired(lm, found.repair):
        assert found.losses["repaired"] == pytest.approx(math.log(perplexity(lm, mask, text[60:])))
    assert found.losses["repaired"] < 0.9 * found.losses["masked"]
    assert found.facts() == {
        "asked": "least-squares",
        "shipped": True,
        "held_out_loss": found.losses,
    }
    assert not heard.notes


def test_a_repair_of_too_few_tokens_does_harm_and_is_not_shipped(lm, text, heard):
    found = choose(lm, text[:1], text[60:], repair="least-squares")
    assert found.repair is None
    assert found.losses["repaired"] > found.losses["masked"]
    assert found.facts()["shipped"] is False
    without, with_it = (f"{found.losses[name]:.4f}" for name in ("masked", "repaired"))
    assert heard.notes == [
        "the mask ships without repair least-squares, which does harm on held-out windows of "
        f"calibration text: loss {with_it}, without it {without}"
    ]


def test_no_repair_of_an_earlier_part_of_the_run_is_left(tmp_path):
    path = tmp_path / "repair.safetensors"
    for repair in (Repair(biases={(0, "heads"): torch.zeros(32)}), None, None):
        ChosenRepair("bias", repair).save(path)
        assert path.exists() == (repair is not None)


def test_a_damping_of_its_own_makes_the_same_few_tokens_useful(lm, text):
    found = choose(lm, text[:1], text[60:90], repair="least-squares", repair_damping="auto")
    assert found.repair is not None
    mask, other = patterns(lm.units)["some"], text[90:]
    before = perplexity(lm, mask, other)
    with repaired(lm, found.repair):
        assert perplexity(lm, mask, other) < 0.8 * before


def test_losses_that_are_not_finite_are_harm(lm, text, monkeypatch):
    broken = Repair(weights={(0, "heads"): torch.full((32, 32), torch.nan)})
    monkeypatch.setattr("pgprune.repair.choice.fit_repair", lambda *_, **__: broken)
    assert choose(lm, text[:60], text[60:], repair="least-squares").repair is None


@pytest.mark.parametrize("how", ["auto", "none"])
def test_what_a_method_brings_is_not_judged_and_costs_nothing(lm, text, how):
    own, mask = Repair(biases={(0, "heads"): torch.zeros(32)}), lm.units.ones()
    config = RepairConfig(repair=how, repair_damping="auto")
    found = chosen_repair(lm, mask, text[:60], text[60:], config, own)
    assert found.repair is (own if how == "auto" else None)
    assert not found.losses and lm.meter.tokens == 0


def test_a_repair_in_words():
    assert describe(RepairConfig("bias")) == "bias"
    assert describe(RepairConfig("least-squares")) == "least-squares, damping 0.01"
    assert describe(RepairConfig("alternating", "auto")) == "alternating, damping by held-out text"
