"""Tiny random models of architectures without a row, and what ``--family auto`` makes of them."""

from functools import cache
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pgprune.models.discovery import discover
from pgprune.models.family import Family
from pgprune.models.proof import prove

_TINY = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OF_GPT = {
    "vocab_size": 48,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 24,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OTHER = {
    "bloom": {"vocab_size": 48, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "falcon": {
        "vocab_size": 48,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "ffn_hidden_size": 24,
    },
    "gptj": _OF_GPT | {"rotary_dim": 4},
    "gpt_bigcode": _OF_GPT,
    "gpt_neo": {
        "vocab_size": 48,
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "intermediate_size": 24,
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 4,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mamba": {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 3},
}


class Unlisted(NamedTuple):
    """What is found in an architecture.

    Attributes:
        exact: granularities that are pruned, with the same logits masked, sliced, cut and loaded.
        refused: the others, and a part of the sentence that refuses them.
    """

    exact: tuple[str, ...]
    refused: dict[str, str]


_ALL = ("channels", "layers", "heads")
_FUSED = {"heads": "are no projections of their own"}
_UNEVEN = {"heads": "neither a stock"}  # but layers that differ are built
UNLISTED = {
    "apertus": Unlisted(_ALL, {}),
    "biogpt": Unlisted(("channels", "layers"), {"heads": "neither a stock 'biogpt' nor"}),
    "bitnet": Unlisted(("layers",), {"channels": "an output of mlp.up_proj reaches other inputs"}),
    "bloom": Unlisted(("layers",), {"channels": "no entry of a 'bloom' config", **_FUSED}),
    "cohere": Unlisted(_ALL, {"blocks": "the rest of the layer"}),
    "ernie4_5": Unlisted(_ALL, {}),
    "exaone4": Unlisted(_ALL, {}),
    "falcon": Unlisted(("channels", "layers"), {"blocks": "the rest of the layer", **_FUSED}),
    "glm4": Unlisted(("layers", "heads"), {"channels": "gate_up_proj fuses two projections"}),
    "gpt_bigcode": Unlisted(("channels", "layers"), _FUSED),
    "gpt_neo": Unlisted(("channels", "layers"), _UNEVEN),
    "gptj": Unlisted(("channels", "layers"), _UNEVEN),
    "helium": Unlisted(("channels", "layers"), {"heads": "neither a stock 'helium' nor"}),
    "nemotron": Unlisted(_ALL, {}),
    "olmo": Unlisted(_ALL, {}),
    "nanochat": Unlisted(_ALL, {}),
    "persimmon": Unlisted(("channels", "layers"), _FUSED),
    "jais2": Unlisted(_ALL, {}),
    "stablelm": Unlisted(("channels", "layers"), _UNEVEN),
    "starcoder2": Unlisted(_ALL, {}),
}
"""Architectures of which something can be pruned."""

NOTHING = {
    "doge": "it is not known what the layer.input_residual does",
    "mamba": "0 MLPs of linear projections were found beside mixer",
}
"""Architectures of which nothing is proven, and a part of the sentence that says so."""


@cache
def unlisted_model(model_type: str, **changes: Any) -> PreTrainedModel:
    """A random model whose every weight matters, in float64; not to be changed."""
    config = AutoConfig.for_model(model_type, **(_OTHER.get(model_type, _TINY) | changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                norm = "norm" in name and name.endswith("weight")
                parameter.normal_(mean=1 if norm else 0, std=0.3)
    return model.eval().requires_grad_(False)


@cache
def proven(model_type: str) -> Family:
    """The row that is found in such a model, proven once for all tests."""
    model = unlisted_model(model_type)
    return prove(model, discover(model))
