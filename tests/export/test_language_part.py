"""pgprune language: the language part of a model of text and images, taken out and put back."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from helpers.command import command
from helpers.mixtures import MIXTURES
from helpers.pruned import equal_layers
from helpers.tiny import CONFIGS, letters_tokenizer, tiny_model, tokens
from pgprune import PruningError
from pgprune.export import language_part
from pgprune.export.language_part import put_back, take_out
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig, check_model, load_model
from pgprune.surgery.layers import prune

SIGHT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
KINDS = {
    "llava": ("llama", "clip_vision_model", {}),
    "gemma3": ("gemma3_text", "siglip_vision_model", {}),
    "mistral3": ("mistral", "pixtral", {}),
    "qwen3_5": (
        "qwen3_5_text",
        "qwen3_5_vision",
        {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 16},
    ),
    "gemma4": ("gemma4_text", "gemma4_vision", {"num_key_value_heads": 2, "head_dim": 8}),
    "llama4": ("llama4_text", "llama4_vision_model", {"vision_output_dim": 16}),
}


def whole_in(folder, kind="llava"):
    """Saves a small model of text and images, with a processor's file."""
    text, sight, others = KINDS[kind]
    texts = (CONFIGS | MIXTURES)[text].to_dict()
    seen = SIGHT | {"model_type": sight} | others
    config = AutoConfig.for_model(kind, text_config=texts, vision_config=seen)
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    whole.save_pretrained(folder)
    letters_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    return whole


def seeing_part(whole):
    """The weights of what reads images, by name."""
    parts = whole.state_dict().items()
    return {n: part for n, part in parts if "language_model" not in n and "lm_head" not in n}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_out_pruned_and_back(kind, tmp_path):
    whole = whole_in(tmp_path / "whole", kind)
    with pytest.raises(PruningError, match=f"'{KINDS[kind][0]}', can be .* pgprune language"):
        check_model(ModelConfig(str(tmp_path / "whole")))
    assert command("language", tmp_path / "whole", "--output", tmp_path / "part") is None
    language, _ = load_model(ModelConfig(str(tmp_path / "part")))
    assert torch.equal(language(tokens()).logits, whole(input_ids=tokens()).logits)

    units = PruningUnits.of(language, "experts" if KINDS[kind][0] in MIXTURES else "channels")
    mask = equal_layers(units, channels=8, experts=3)
    prune(language, units, mask).save_pretrained(tmp_path / "pruned")
    letters_tokenizer().save_pretrained(tmp_path / "pruned")
    words = ("--pruned", tmp_path / "pruned", "--output", tmp_path / "smaller")
    assert command("language", tmp_path / "whole", *words) is None
    smaller = AutoModelForImageTextToText.from_pretrained(tmp_path / "smaller")
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert torch.equal(smaller(input_ids=tokens()).logits, pruned(tokens()).logits)
    seeing, after = seeing_part(whole), seeing_part(smaller)
    assert seeing and all(torch.equal(part, after[name]) for name, part in seeing.items())
    assert (tmp_path / "smaller" / "preprocessor_config.json").read_text() == "{}"


def test_what_does_not_fit_is_refused(tmp_path):
    whole_in(tmp_path / "whole")
    other = tiny_model("llama", dtype=torch.float32)
    units = PruningUnits.of(other, "channels")
    uneven = units.ones()
    uneven[:2] = 0  # of layer 0 only
    prune(other, units, uneven).save_pretrained(tmp_path / "uneven")
    tiny_model("mistral").save_pretrained(tmp_path / "mistral")
    for name in ("uneven", "mistral"):
        letters_tokenizer().save_pretrained(tmp_path / name)
    source, output = str(tmp_path / "whole"), tmp_path / "smaller"
    with pytest.raises(PruningError, match="differ, and .* equal ones only; export .* --uniform"):
        put_back(source, str(tmp_path / "uneven"), output)
    with pytest.raises(PruningError, match="has model_type 'mistral', and .* has 'llama'; give"):
        put_back(source, str(tmp_path / "mistral"), output)
    with pytest.raises(PruningError, match="'mistral'. is none of text and images"):
        take_out(str(tmp_path / "mistral"), output)
    assert not output.exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(PruningError, match="exists"):
        take_out("whole", tmp_path / "there")


def test_a_language_part_in_another_place_is_said(tmp_path, monkeypatch):
    whole_in(tmp_path / "whole")
    other = tiny_model("llama")  # has no model.language_model
    monkeypatch.setattr(language_part, "_load", lambda loader, place: other)
    with pytest.raises(PruningError, match="is neither in its model.language_model and lm_head"):
        take_out(str(tmp_path / "whole"), tmp_path / "part")
    assert not (tmp_path / "part").exists()
