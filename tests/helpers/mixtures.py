"""Configurations of small mixtures of experts, with experts as units in place of channels."""

import torch
from torch import nn
from transformers import (
    DeepseekV3Config,
    Glm4MoeConfig,
    GptOssConfig,
    GraniteMoeConfig,
    Llama4TextConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3_5MoeTextConfig,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from pgprune.models.families import family_of

_SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "experts_implementation": "eager",  # the default knows no float64
}
_GROUPS = {
    "intermediate_size": 12,
    "moe_intermediate_size": 6,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_GATED_DELTA = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "full_attention"],
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "moe_intermediate_size": 6,
    "shared_expert_intermediate_size": 5,
    "num_experts": 4,
}
MIXTURES = {
    "qwen3_moe": Qwen3MoeConfig(
        **_SMALL,
        head_dim=10,
        intermediate_size=12,
        moe_intermediate_size=6,
        num_experts=4,
        norm_topk_prob=True,
        mlp_only_layers=[2],  # without experts
    ),
    "mixtral": MixtralConfig(**_SMALL, intermediate_size=6, num_local_experts=4),
    "olmoe": OlmoeConfig(**_SMALL, intermediate_size=6, num_experts=4),
    "qwen2_moe": Qwen2MoeConfig(
        **_SMALL,
        intermediate_size=12,
        moe_intermediate_size=6,
        shared_expert_intermediate_size=5,
        num_experts=4,
        mlp_only_layers=[0],
    ),
    "granitemoe": GraniteMoeConfig(
        **_SMALL, intermediate_size=6, num_local_experts=4, residual_multiplier=0.7
    ),
    "gpt_oss": GptOssConfig(
        **_SMALL, head_dim=10, intermediate_size=6, num_local_experts=4, sliding_window=5
    ),
    "glm4_moe": Glm4MoeConfig(**_SMALL, **_GROUPS, head_dim=10),
    "llama4_text": Llama4TextConfig(
        **_SMALL,
        head_dim=10,
        intermediate_size=6,
        intermediate_size_mlp=12,
        num_local_experts=4,
        moe_layers=[0, 2],
        no_rope_layers=[1, 0, 1],
        attention_chunk_size=5,
        floor_scale=4,
        attn_scale=0.5,
    ),
    "qwen3_next": Qwen3NextConfig(
        **_SMALL, **_GATED_DELTA, intermediate_size=12, mlp_only_layers=[2]
    ),
    "qwen3_5_moe_text": Qwen3_5MoeTextConfig(**_SMALL, **_GATED_DELTA),
    "deepseek_v3": DeepseekV3Config(
        **_SMALL | {"num_key_value_heads": 4},
        **_GROUPS,
        q_lora_rank=12,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=6,
        v_head_dim=5,
    ),
}


def family_with(granularity: str, other: str = "llama") -> str:
    """A family that has units of a granularity: the other one unless these are experts."""
    return "mixtral" if "experts" in granularity else other


def with_experts(model) -> dict[int, nn.Module]:
    """The router of each layer that has experts, by its index."""
    router_of = family_of(model.config).experts.router_of
    routers = {index: router_of(layer) for index, layer in enumerate(model.model.layers)}
    return {index: router for index, router in routers.items() if router is not None}


@torch.no_grad()
def mlp_inputs(model, windows: torch.Tensor) -> dict[int, torch.Tensor]:
    """What the MLP of each layer of a dense model gets, (N, T, D), by the layer's index."""
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda m, args, i=i: seen.update({i: args[0]}))
        for i, layer in enumerate(model.model.layers)
    ]
    model(windows)
    for hook in hooks:
        hook.remove()
    return seen
