"""Model families as data: the paths of layers and projections in each Hugging Face architecture.

A new family is a new row of ``FAMILIES``; no other code names an architecture.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from pgprune.errors import PruningError
from pgprune.hub_code.fused import Fused
from pgprune.models.experts import Experts
from pgprune.models.family import REFUSED, Family
from pgprune.models.opening import open_layers

_MOST_LAYERS = 10_000

_QKV = ("query", "key", "value")

_LLAMA = Family(
    layers="model.layers",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    expand=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    attention_norms=("input_layernorm",),
    mlp_norms=("post_attention_layernorm",),
    gguf="deci",
)
_GEMMA = replace(
    _LLAMA,
    attention_norms=("input_layernorm", "post_attention_layernorm"),
    mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    attention_end="post_attention_layernorm",
    mlp_end="post_feedforward_layernorm",
    sliced=False,
    bos=True,
    gguf=None,
)
_WIDE_NORMS = "its norms of queries and keys span all heads of a layer"
_OLMO = replace(
    _GEMMA,
    attention_norms=("post_attention_layernorm",),
    mlp_norms=("post_feedforward_layernorm",),
    bos=False,
    refused={"heads": _WIDE_NORMS, "values": _WIDE_NORMS},
)
_MIXTURE = replace(_LLAMA, expand=(), down="mlp", sliced=False, gguf=None, experts=Experts())

FAMILIES: dict[str, Family] = {
    "llama": replace(_LLAMA, stock_heads="divisor", stand_in="mistral"),
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": replace(_LLAMA, gguf="qwen3"),
    "opt": Family(
        layers="model.decoder.layers",
        attention="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.out_proj",
        expand=("fc1",),
        down="fc2",
        attention_norms=("self_attn_layer_norm",),
        mlp_norms=("final_layer_norm",),
        channel_count="ffn_dim",
        head_counts={"num_heads": "heads"},
        stock_heads="dense",
        final_norm="model.decoder.final_layer_norm",
        positions="model.decoder.embed_positions",
    ),
    "gemma": replace(_LLAMA, sliced=False, bos=True, gguf=None),
    "gemma2": replace(_GEMMA, gguf="gemma2"),
    "gemma3_text": replace(_GEMMA, gguf="gemma3"),
    "granite": replace(_LLAMA, multiplier="residual_multiplier", sliced=False, gguf="granite"),
    "smollm3": replace(_LLAMA, layer_lists=("layer_types", "no_rope_layers"), gguf=None),
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "ministral3": replace(_LLAMA, gguf=None),
    "seed_oss": _LLAMA,
    "hunyuan_v1_dense": replace(_LLAMA, gguf=None),
    "arcee": replace(_LLAMA, expand=("mlp.up_proj",), stock_heads="divisor", gguf=None),
    "qwen3_moe": replace(
        _MIXTURE, experts=Experts(dense_layers="mlp_only_layers", step="decoder_sparse_step")
    ),
    "mixtral": _MIXTURE,
    "phi3": replace(
        _LLAMA,
        query="self_attn.qkv_proj.query",
        key="self_attn.qkv_proj.key",
        value="self_attn.qkv_proj.value",
        expand=("mlp.gate_up_proj.gate", "mlp.gate_up_proj.up"),
        stock_heads="unscaled",
        head_counts={"config.num_attention_heads": "heads", "num_key_value_heads": "kv_heads"},
        sliced=False,
        fused=(Fused("self_attn.qkv_proj", _QKV), Fused("mlp.gate_up_proj", ("gate", "up"))),
        gguf="phi3",
    ),
    "phi": replace(
        _LLAMA,
        output="self_attn.dense",
        expand=("mlp.fc1",),
        down="mlp.fc2",
        mlp_norms=(),
        stock_heads="unscaled",
        parallel=True,
        fitted=True,
        sliced=False,
        final_norm="model.final_layernorm",
        gguf=None,
        refused=dict.fromkeys(("attention", "mlp"), "both blocks of a layer share one norm"),
    ),
    "gpt_neox": Family(
        layers="gpt_neox.layers",
        attention="attention",
        query="attention.query_key_value.query",
        key="attention.query_key_value.key",
        value="attention.query_key_value.value",
        output="attention.dense",
        expand=("mlp.dense_h_to_4h",),
        down="mlp.dense_4h_to_h",
        attention_norms=("input_layernorm",),
        mlp_norms=("post_attention_layernorm",),
        head_dim="head_size",
        sliced=False,
        fused=(Fused("attention.query_key_value", _QKV, by_head=True),),
        stock_heads="dense",
        final_norm="gpt_neox.final_layer_norm",
        gguf="gptneox",
    ),
    "gpt2": Family(
        layers="transformer.h",
        attention="attn",
        query="attn.c_attn.query",
        key="attn.c_attn.key",
        value="attn.c_attn.value",
        output="attn.c_proj",
        expand=("mlp.c_fc",),
        down="mlp.c_proj",
        attention_norms=("ln_1",),
        mlp_norms=("ln_2",),
        channel_count="n_inner",
        head_counts={"split_size": "width"},
        sliced=False,
        fused=(
            Fused("attn.c_attn", _QKV, transposed=True),
            Fused("attn.c_proj", transposed=True),
            Fused("mlp.c_fc", transposed=True),
            Fused("mlp.c_proj", transposed=True),
        ),
        stock_heads="dense",
        final_norm="transformer.ln_f",
        positions="transformer.wpe",
        gguf="gpt2",
    ),
}
"""Every supported family by its Hugging Face ``model_type``."""

_FOUND: dict[str, Family] = {}
"""Families that were found and proven on a model which this process has loaded."""


def check_layers(config: Mapping[str, Any], where: str) -> None:
    """Refuses a number of layers that is a mistake, before a configuration makes lists as long.

    Args:
        config: as a file says it.
        where: the file, for the error.

    Raises:
        PruningError: there are more than 10,000.
    """
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise PruningError(
            f"the {where} says {layers:,} layers (num_hidden_layers); more than {_MOST_LAYERS:,} "
            "are taken for a mistake"
        )


def family_of(config: Any) -> Family:
    """Returns the family of a Hugging Face model configuration.

    Raises:
        PruningError: the family is unknown, or a variant of it that masks cannot describe.
    """
    model_type = getattr(config, "model_type", None)
    if model_type in _FOUND:
        return _FOUND[model_type]
    if model_type not in FAMILIES:
        raise PruningError(
            f"the model family {model_type!r} is not supported; known families: "
            f"{', '.join(sorted(FAMILIES))}, and what --family auto proves"
        )
    for name, value, reason in REFUSED:
        if getattr(config, name, None) is value:
            raise PruningError(reason)
    family = FAMILIES[model_type]
    parallel = getattr(config, "use_parallel_residual", family.parallel)
    return family if parallel == family.parallel else replace(family, parallel=parallel)


def add_found(model_type: str, family: Family) -> None:
    """Keeps a family that was proven on a loaded model, for this process.

    Raises:
        PruningError: a model of the family was loaded before that is built otherwise.
    """
    if _FOUND.setdefault(model_type, family) != family:
        raise PruningError(
            "this process has loaded another model of this family that is built otherwise; start "
            "a process for each"
        )


def is_found(config: Any) -> bool:
    """Whether the family of a configuration was found on a loaded model, and is none of ours."""
    return getattr(config, "model_type", None) in _FOUND


def check_kinds(config: Any, kinds: Iterable[str]) -> None:
    """Checks that units of some kinds can be pruned in the family of a configuration.

    Raises:
        PruningError: they cannot.
    """
    refused = family_of(config).refused
    for kind in (kind for kind in refused if kind in kinds):
        raise PruningError(
            f"units of the kind {kind!r} cannot be pruned in the family {config.model_type!r}, "
            f"because {refused[kind]}; choose a --granularity without {', '.join(refused)}"
        )


def projection_of(model: nn.Module, layer: int, kind: str) -> nn.Linear | None:
    """Returns a projection of ``Family.projections``; None if the model lacks it.

    Args:
        model: a causal LM of a known family.
        layer: index of the layer.
        kind: ``heads``, ``channels`` or ``up``.
    """
    family = family_of(model.config)
    layers, path = decoder_layers(model, family), family.projections.get(kind)
    return linear_at(layers[layer], path) if path is not None and layer < len(layers) else None


def decoder_layers(model: nn.Module, family: Family) -> nn.ModuleList:
    """Returns the list of decoder layers of a causal LM, and opens what is fused in them."""
    layers = model.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    open_layers(layers, family.fused, model.config)
    return layers


def head_sizes(layer: nn.Module, family: Family) -> tuple[int, int, int]:
    """Returns kv heads, query heads of each, and their size; of unknown heads, one of all inputs.

    Args:
        layer: a decoder layer.
        family: of the model.
    """
    if not family.query:
        return 1, 1, linear_at(layer, family.output).in_features
    head_dim: Any = getattr(layer.get_submodule(family.attention), family.head_dim)
    query, key = (linear_at(layer, path).out_features for path in (family.query, family.key))
    return key // head_dim, query // key, head_dim


def linear_at(layer: nn.Module, path: str) -> nn.Linear:
    """Returns a projection of a layer, as ``get_submodule`` does in ten times the time."""
    module: Any = layer
    for name in path.split("."):
        module = module._modules[name]
    assert isinstance(module, nn.Linear), f"{path} is not a linear projection"
    return module
