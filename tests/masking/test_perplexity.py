import math

import pytest
import torch
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from helpers.tiny import masked_lm, tiny_model, tokens
from pgprune.data.stream import DataConfig, evaluation_windows
from pgprune.masking.perplexity import bos_rule, perplexity
from pgprune.models.load import ModelConfig, load_model


class FakeLM:
    """Its loss is the window's first id times the mask's first bit, plus one."""

    def losses(self, masks, input_ids):
        return masks[:, :1].float() * input_ids[None, :, 0].float() + 1


def windows_of(*first_ids: float) -> torch.Tensor:
    return torch.tensor(first_ids)[:, None].expand(-1, 4)


def test_perplexity_is_exp_of_the_mean_over_all_windows_also_of_a_last_small_batch():
    masks, windows = torch.tensor([[1, 0], [0, 1]]), windows_of(1, 2, 6)
    assert perplexity(FakeLM(), masks, windows, batch_size=2) == pytest.approx([math.e**4, math.e])
    assert perplexity(FakeLM(), masks[0], windows, batch_size=2) == pytest.approx(math.e**4)


def test_a_loss_that_is_not_a_number_is_not_hidden():
    value, other = perplexity(FakeLM(), torch.tensor([[1], [0]]), windows_of(1.0, math.nan))
    assert math.isnan(value)
    assert math.isnan(other)  # 0 * nan
    assert perplexity(FakeLM(), torch.ones(1), windows_of(1e4)) == math.inf


def test_the_mean_is_taken_in_float64():
    windows = windows_of(*[0.1] * 1000)
    expected = math.exp(1 + float(torch.tensor(0.1)))
    assert perplexity(FakeLM(), torch.ones(1), windows) == pytest.approx(expected, rel=1e-7)


def test_it_is_the_perplexity_of_the_real_model():
    lm, windows = masked_lm(tiny_model("llama")), tokens(batch=5)
    with torch.no_grad():
        expected = math.exp(lm.model(input_ids=windows, labels=windows).loss)
    assert perplexity(lm, lm.units.ones(), windows, batch_size=2) == pytest.approx(expected)
    assert perplexity(lm, lm.units.ones()[None], windows) == [pytest.approx(expected)]


@pytest.mark.parametrize(("bos", "rule"), [(True, "one BOS per document"), (False, "none")])
def test_the_bos_rule_is_named(bos, rule):
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="<s>"))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    assert bos_rule(PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")) == rule
    assert bos_rule(PreTrainedTokenizerFast(tokenizer_object=tokenizer)) == "none"


@pytest.mark.parametrize(("name", "expected"), [("stories260K", 5.23), ("babyllama-361", 2.40)])
def test_dense_perplexity_on_tinystories(name, expected, assets):
    model, tokenizer = load_model(ModelConfig(model=str(assets / "models" / name), device="cpu"))
    (text,) = (assets / "text" / "tinystories").glob("*.jsonl")
    assert len(text.read_text().splitlines()) == 1000
    data = DataConfig(evaluation=f"{text}[500:1000]", evaluation_windows=400)
    windows = evaluation_windows(data, tokenizer)
    lm = masked_lm(model)
    (value,) = (perplexity(lm, lm.units.ones(), w) for w in windows.values())
    assert bos_rule(tokenizer) == "one BOS per document"
    assert windows[text.stem].shape == (400, 128)
    assert value == pytest.approx(expected, abs=5e-3)
