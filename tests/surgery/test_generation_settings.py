"""Settings of text generation, as a pruned model takes them from the dense one."""

import pytest
from transformers import GenerationConfig

from helpers.tiny import tiny_model, tokens
from pgprune.masking.units import PruningUnits
from pgprune.surgery.generation_settings import savable_generation_config
from pgprune.surgery.layers import prune

SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.5}
BEAMS = {"num_beams": 3, "early_stopping": True, "length_penalty": 2.0}


def saved(tmp_path, **settings) -> dict:
    """What is left of settings that transformers may have warned of."""
    model = tiny_model("llama")
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    found = savable_generation_config(model, model.config)
    found.save_pretrained(tmp_path)
    assert all(getattr(model.generation_config, name) == settings[name] for name in settings)
    return GenerationConfig.from_pretrained(tmp_path).to_diff_dict()


@pytest.mark.parametrize(
    "settings", [SAMPLING, BEAMS, SAMPLING | BEAMS, {"cache_implementation": "static"}]
)
def test_settings_that_do_something_stay(tmp_path, settings):
    found = saved(tmp_path, **settings)
    assert {name: found[name] for name in settings} == settings


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6, "top_p": 0.9, "do_sample": False},  # of Llama 2
        {"temperature": 0.6, "top_k": 5},
        {"early_stopping": True, "length_penalty": 2.0},
        {"output_scores": True, "output_logits": True},
        {"pad_token_id": -1},
        {"cache_implementation": "of another version"},
        {"num_return_sequences": 3},
    ],
    ids=str,
)
def test_settings_that_do_nothing_are_left_out(tmp_path, settings):
    found = saved(tmp_path, eos_token_id=7, **settings)
    assert found["eos_token_id"] == 7
    assert not {name for name in settings if found.get(name)}


def test_a_text_is_not_sampled_where_the_dense_models_is_not():
    model = tiny_model("llama")
    model.generation_config.temperature = 9.0
    units = PruningUnits.of(model)
    pruned = prune(model, units, units.ones())
    texts = {str(pruned.generate(tokens(), max_new_tokens=9).tolist()) for _ in range(2)}
    assert len(texts) == 1
