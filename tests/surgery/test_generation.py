"""Ways of generating text x families x patterns: a model writes what it does without a cache.

Caches must know the length of the text and forget tokens again where layers lack attention, with
sliding windows too, which all but the shortest text here exceed.
"""

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from helpers.masks import patterns
from helpers.pruned import in_pieces
from helpers.tiny import tiny_model, tokens
from pgprune.masking.units import PruningUnits
from pgprune.surgery.layers import prune

SLIDING = {"use_sliding_window": True, "sliding_window": 5}
MIXED = SLIDING | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
MODELS = [
    pytest.param("llama", {}, id="llama"),
    pytest.param("mistral", {}, id="mistral"),
    pytest.param("qwen2", MIXED, id="qwen2, mixed"),
    pytest.param("qwen2", {}, id="qwen2", marks=pytest.mark.slow),
    pytest.param("qwen3", {}, id="qwen3", marks=pytest.mark.slow),
    pytest.param("opt", {}, id="opt"),
]
PATTERNS = [
    pytest.param("blocks", "all attention of layer 1"),
    pytest.param("heads+channels", "layer 0 and some"),
    pytest.param("blocks", "the first attention of each layer", marks=pytest.mark.slow),
    pytest.param("heads+channels", "all heads of layer 1", marks=pytest.mark.slow),
    pytest.param("values+channels", "the first kv head and some", marks=pytest.mark.slow),
]
NEW = 6


def generated(model: PreTrainedModel, ids: torch.Tensor, **options) -> list[list[int]]:
    options = {"do_sample": False, "pad_token_id": 0, "min_new_tokens": NEW} | options
    options |= {"max_new_tokens": NEW, "attention_mask": torch.ones_like(ids)}
    return model.generate(ids, **options).tolist()


pytestmark = [
    pytest.mark.parametrize(("family", "changes"), MODELS, scope="module"),
    pytest.mark.parametrize(("granularity", "pattern"), PATTERNS, scope="module"),
]


@pytest.fixture(scope="module")
def dense(family, changes) -> PreTrainedModel:
    return tiny_model(family, **changes)


@pytest.fixture(scope="module")
def pruned(dense, granularity, pattern) -> PreTrainedModel:
    units = PruningUnits.of(dense, granularity)
    return prune(dense, units, patterns(units)[pattern])


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"do_sample": True}, {}],
    ids=str,
)
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}], ids=["own", "static"])
def test_a_text_is_the_same_with_a_cache(pruned, options, cache):
    texts = []
    for how in (cache, {"use_cache": False}):
        torch.manual_seed(0)
        texts.append(generated(pruned, tokens(), **options, **how))
    assert texts[0] == texts[1]


def test_tokens_that_are_taken_back(dense, pruned):
    """Guesses from the prompt or of a draft model change nothing but the time."""
    ids = tokens(batch=1).repeat(1, 2)
    expected = generated(pruned, ids, use_cache=False)
    assert generated(pruned, ids, prompt_lookup_num_tokens=3) == expected
    assert generated(pruned, ids, assistant_model=dense) == expected
    assert generated(dense, ids, assistant_model=pruned) == generated(dense, ids)


@torch.no_grad()
def test_a_cache_that_is_cropped_by_hand(pruned):
    ids = tokens(batch=1, length=12)
    cache = DynamicCache(config=pruned.config)
    for layer in cache.layers:
        if layer.is_sliding:
            layer.activate_past_recording()
    pruned(ids, past_key_values=cache)
    cache.crop(-4)
    assert {layer.get_seq_length() for layer in cache.layers} == {8}
    again = pruned(ids[:, 8:], past_key_values=cache).logits
    torch.testing.assert_close(again, pruned(ids).logits[:, 8:], rtol=0, atol=1e-10)


@torch.no_grad()
def test_attention_weights_are_one_tensor_for_each_layer(pruned):
    """Of as many heads as it has left; layers without attention would else shift the others."""
    pruned.set_attn_implementation("eager")
    try:
        options = {"output_attentions": True, "return_dict_in_generate": True}
        found = pruned.generate(tokens(), max_new_tokens=3, do_sample=False, **options).attentions
    finally:
        pruned.set_attn_implementation("sdpa")
    layers = pruned.get_decoder().layers
    heads = [getattr(layer.self_attn, "num_heads", 0) for layer in layers]
    for weights in found:  # of each new token
        assert [layer.shape[1] for layer in weights] == heads


@torch.no_grad()
def test_padding_on_the_left(pruned):
    ids = tokens(batch=1)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), ids], dim=1)
    attention = (torch.arange(padded.shape[1]) >= 3).long()[None]
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    longer = pruned.generate(padded, attention_mask=attention, **options)
    shorter = pruned.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert longer[:, 3:].tolist() == shorter.tolist()


def test_a_text_in_pieces(pruned):
    ids = tokens(length=12)
    pieces = in_pieces(pruned, ids, sizes=(4, 1, 3, 4))
    with torch.no_grad():
        torch.testing.assert_close(pieces, pruned(ids).logits, rtol=0, atol=1e-10)


@pytest.mark.slow
@torch.no_grad()
def test_compiled(pruned):
    ids = tokens()
    compiled = torch.compile(pruned, backend="aot_eager")(ids).logits
    torch.testing.assert_close(compiled, pruned(ids).logits, rtol=0, atol=1e-10)
