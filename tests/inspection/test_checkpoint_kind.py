"""Checkpoints that cannot be pruned are refused by their config.json, before weights are read."""

import json
from pathlib import Path

import pytest

from helpers.tiny import letters_tokenizer, tiny_model
from pgprune import PruningError
from pgprune.models.load import ModelConfig, check_model


@pytest.fixture
def directory(tmp_path) -> Path:
    """A tiny LLaMA with its tokenizer, but without weights: nothing may read them."""
    tiny_model("llama").config.save_pretrained(tmp_path)
    letters_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def refusal(directory: Path, **changes) -> str:
    """What is said of the model with other values in its config.json."""
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(PruningError) as error:
        check_model(ModelConfig(str(directory)))
    assert str(directory) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("quantization", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes 4bit"),
        ({"load_in_8bit": True}, "bitsandbytes 8bit"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"bits": 3}, "an unknown method"),
        ("\x1b[31m", "by an unknown method"),
    ],
)
def test_quantized_weights(directory, quantization, method):
    said = refusal(directory, quantization_config=quantization)
    assert f"quantized weights ({method}, by quantization_config" in said
    assert "prune the model as it was before it was quantized, then quantize what is left" in said


def test_quantized_weights_of_an_unknown_family_of_a_part_and_of_an_older_version(directory):
    config = {"quant_method": "mxfp4"}
    assert "(mxfp4, " in refusal(directory, model_type="gpt_oss", quantization_config=config)
    assert "(gptq, by compression_config" in refusal(
        directory,
        quantization_config=None,
        text_config={"compression_config": {"quant_method": "gptq"}},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava", "vision_config": {"hidden_size": 8}}, "takes more than text (vis"),
        ({"model_type": "qwen2_audio", "audio_config": {"d": 8}}, "more than text (audio_config "),
        ({"model_type": "t5"}, "has an encoder and a decoder"),
        ({"model_type": "whisper", "is_encoder_decoder": True}, "has an encoder and a decoder"),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "a.B"}},
            "needs code of its own (auto_map",
        ),
        ({"model_type": "own"}, "(model_type 'own') is none that transformers 5."),
        ({"model_type": "vit"}, "is none that transformers has a causal LM of"),
        (
            {"model_type": "bloom"},
            "'bloom', which pgprune does not list; --family auto finds",
        ),
    ],
)
def test_what_is_no_decoder_of_text(directory, changes, message):
    assert message in refusal(directory, **changes)
