"""Model families as data: the paths of layers and projections in each Hugging Face architecture.

A new family is a new row of ``FAMILIES``; no other code names an architecture.
"""

from dataclasses import replace

from pgprune.hub_code.fused import Fused
from pgprune.models.experts import Experts
from pgprune.models.family import Family

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
    refused=dict.fromkeys(("heads", "values"), _WIDE_NORMS),
)
_MORE_THAN_STATES = "its layer unpacks what an MLP returns beside the states"
_MIXTURE = replace(_LLAMA, expand=(), down="mlp", sliced=False, gguf=None, experts=Experts())

_NARROW = replace(_MIXTURE, channel_count="moe_intermediate_size")
_IN_GROUPS = Experts(
    count="n_routed_experts",
    first_dense="first_k_dense_replace",
    groups="n_group",
    shared="mlp.shared_experts",
)


def _no_heads(reason: str) -> dict[str, str]:
    """Says for a family why neither heads nor their value dimensions can be pruned."""
    return {"heads": reason, "values": reason}


_GATED_DELTA = replace(
    _LLAMA,
    query="",
    key="",
    value="",
    recurrent=("linear_attn", "linear_attn.out_proj"),
    sliced=False,
    gguf=None,
    refused=_no_heads("most of its layers have a recurrent state in place of keys and values"),
)

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
    "gemma4_text": replace(
        _GEMMA,
        query="",
        key="",
        value="",
        rest=True,
        embeddings=(
            "model.embed_tokens_per_layer",
            "model.per_layer_model_projection",
            "model.per_layer_projection_norm",
        ),
        own_width={"use_double_wide_mlp": False},
        refused={
            **_no_heads("its layers differ in the size of heads, and some share keys and values"),
            **dict.fromkeys(
                ("attention", "mlp"), "a layer without blocks would still scale the states"
            ),
            "layer": "its last layer and those that lend keys and values to others must stay",
        },
    ),
    "granite": replace(_LLAMA, multiplier="residual_multiplier", sliced=False, gguf="granite"),
    "smollm3": replace(_LLAMA, layer_lists=("layer_types", "no_rope_layers"), gguf=None),
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "ministral3": replace(_LLAMA, gguf=None),
    "seed_oss": _LLAMA,
    "qwen3_5_text": _GATED_DELTA,
    "hunyuan_v1_dense": replace(_LLAMA, gguf=None),
    "arcee": replace(_LLAMA, expand=("mlp.up_proj",), stock_heads="divisor", gguf=None),
    "qwen3_moe": replace(
        _NARROW, experts=Experts(dense_layers="mlp_only_layers", step="decoder_sparse_step")
    ),
    "mixtral": _MIXTURE,
    "olmoe": replace(
        _MIXTURE, experts=Experts(count="num_experts"), refused=_no_heads(_WIDE_NORMS)
    ),
    "qwen2_moe": replace(
        _NARROW,
        experts=Experts(
            count="num_experts", dense_layers="mlp_only_layers", step="decoder_sparse_step"
        ),
    ),
    "granitemoe": replace(
        _MIXTURE,
        down="block_sparse_moe",
        multiplier="residual_multiplier",
        experts=Experts("block_sparse_moe.router", "block_sparse_moe.experts"),
    ),
    "llama4_text": replace(
        _MIXTURE,
        down="feed_forward",
        layer_lists=("layer_types", "no_rope_layers"),
        experts=Experts(
            "feed_forward.router",
            "feed_forward.experts",
            moe_layers="moe_layers",
            scored=True,
            inner={"gate_up_proj": 2, "down_proj": 1},
            shared="feed_forward.shared_expert",
        ),
        refused={"mlp": _MORE_THAN_STATES},
    ),
    "qwen3_next": replace(
        _GATED_DELTA,
        channel_count="moe_intermediate_size",
        expand=(),
        down="mlp",
        experts=Experts(
            count="num_experts", dense_layers="mlp_only_layers", step="decoder_sparse_step"
        ),
    ),
    "qwen3_5_moe_text": replace(
        _GATED_DELTA,
        channel_count="moe_intermediate_size",
        expand=(),
        down="mlp",
        experts=Experts(count="num_experts"),
    ),
    "gpt_oss": replace(
        _MIXTURE,
        experts=Experts(
            "mlp.router",
            inner={"gate_up_proj": 2, "gate_up_proj_bias": 1, "down_proj": 1},
            paired=True,
        ),
        refused={
            **_no_heads("each query head has a sink beside its projections"),
            "mlp": _MORE_THAN_STATES,
        },
    ),
    "glm4_moe": replace(_NARROW, experts=_IN_GROUPS),
    "deepseek_v3": replace(
        _NARROW,
        query="",
        key="",
        value="",
        experts=_IN_GROUPS,
        refused=_no_heads("its keys and values are compressed for all heads together"),
    ),
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
