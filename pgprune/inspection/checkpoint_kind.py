"""Refuses checkpoints that are no causal LM of text in floats, by config.json alone."""

from collections.abc import Collection, Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from pgprune.errors import PruningError, printable

_QUANTIZATIONS = ("quantization_config", "compression_config")  # the latter of older versions
_SENSES = ("vision", "audio", "image", "video", "speech", "perceiver", "thinker")
_TEXTS = ("text_config", "language_config", "llm_config", "thinker_config")


def check_floats(source: str, raw: Mapping[str, Any]) -> None:
    """Refuses a checkpoint whose weights are quantized, in itself or in its language part.

    Args:
        source: the model, for the error.
        raw: its config.json.

    Raises:
        PruningError: it is quantized, in whichever way.
    """
    texts = (raw[key] for key in _TEXTS if isinstance(raw.get(key), Mapping))
    for values in (raw, *texts):
        for key in _QUANTIZATIONS:
            if values.get(key):
                raise PruningError(
                    f"the model {source!r} has quantized weights ({_method(values[key])}, by "
                    f"{key} of its config.json), which cannot be pruned; prune the model as it "
                    "was before it was quantized, then quantize what is left"
                )


def check_kind(source: str, raw: Mapping[str, Any], families: Collection[str] = ()) -> None:
    """Refuses a checkpoint that is no decoder of text which the installed transformers has.

    Args:
        source: the model, for the error.
        raw: its config.json.
        families: known ones, of which its language part may be.

    Raises:
        PruningError: it takes images or sounds, has an encoder, needs code of its own, or is no
            causal language model.
    """
    kind = str(raw.get("model_type"))
    said = f"the model {source!r} (model_type {printable(kind)!r}) "
    if parts := _parts(raw):
        text = raw.get("text_config")
        family = str(text.get("model_type")) if isinstance(text, Mapping) else ""
        remedy = "give its language part alone, saved as a causal LM"
        if family in families:
            remedy = (
                f"its language part, of the family {family!r}, can be pruned alone and put back: "
                "pgprune language takes it out"
            )
        raise PruningError(
            f"{said}takes more than text ({printable(', '.join(parts))} in its config.json); "
            f"{remedy}"
        )
    if raw.get("is_encoder_decoder") or kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        raise PruningError(
            f"{said}has an encoder and a decoder, and masks are over a decoder alone; give a "
            "decoder-only causal LM"
        )
    if kind not in CONFIG_MAPPING:
        version = f"transformers {transformers.__version__}"
        if raw.get("auto_map"):
            raise PruningError(
                f"{said}needs code of its own (auto_map in its config.json), which is never run, "
                f"because {version} does not know it; give a version of it that transformers "
                "knows, or install a newer transformers"
            )
        if raw.get("model_type") is not None:
            raise PruningError(
                f"{said}is none that {version} knows; check its config.json, or install a newer "
                "transformers"
            )
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise PruningError(
            f"{said}is none that transformers has a causal LM of; give a decoder that predicts "
            "the next token of a text"
        )


def _method(quantization: Any) -> str:
    """Names the method of a quantization: of bitsandbytes by its bits, else by itself."""
    if not isinstance(quantization, Mapping):
        return "by an unknown method"
    bits = [bits for bits in ("4bit", "8bit") if quantization.get(f"load_in_{bits}")]
    method = quantization.get("quant_method") or ("bitsandbytes" if bits else "an unknown method")
    return printable(" ".join([str(method), *bits]))


def _parts(raw: Mapping[str, Any]) -> list[str]:
    """Lists the keys of the parts that read images or sounds."""
    return [key for key in raw if key.endswith("_config") and key.startswith(_SENSES) and raw[key]]
