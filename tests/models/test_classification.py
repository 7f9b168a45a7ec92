"""Reward models and classifiers on exports whose layers differ, or whose stream is narrower."""

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from helpers.masks import patterns
from helpers.pruned import sliced
from helpers.tiny import tokens
from pgprune.masking.units import PruningUnits
from pgprune.surgery.layers import prune
from pgprune.surgery.slice_model import slice_model


@pytest.fixture(params=["pruned", "sliced"])
def export(request, model, tmp_path):
    """A directory of a smaller model, and that model."""
    units = PruningUnits.of(model)
    if request.param == "sliced":
        smaller = slice_model(model, sliced(model))
    else:
        smaller = prune(model, units, patterns(units)["layer 1 and some"])
    smaller.save_pretrained(tmp_path / "export")
    return tmp_path / "export", smaller


@torch.no_grad()
@pytest.mark.parametrize("trust", [False, True])
def test_a_classifier_scores_the_last_token(export, tmp_path, trust):
    folder, smaller = export
    load = AutoModelForSequenceClassification.from_pretrained
    options = {"trust_remote_code": trust, "dtype": torch.float64}
    model = load(folder, num_labels=3, pad_token_id=1, **options)
    ids = tokens()
    last = smaller.model(ids).last_hidden_state[:, -1]  # (2, D)
    torch.testing.assert_close(model(ids).logits, last @ model.score.weight.T, rtol=0, atol=1e-10)
    padded = torch.cat([ids, torch.ones_like(ids[:, :2])], dim=1)
    attention = (torch.arange(padded.shape[1]) < ids.shape[1]).long().expand_as(padded)
    torch.testing.assert_close(model(padded, attention).logits, model(ids).logits)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", **options)
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_a_classifier_learns(export):
    folder, _ = export
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, pad_token_id=1)
    model(tokens(), labels=torch.tensor([0, 1])).loss.backward()
    assert model.score.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_a_model_without_a_head(export):
    folder, smaller = export
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float64)
    expected = smaller.model(tokens()).last_hidden_state
    torch.testing.assert_close(model(tokens()).last_hidden_state, expected, rtol=0, atol=1e-10)
