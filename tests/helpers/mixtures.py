"""Configurations of small mixtures of experts, with experts as units in place of channels."""

from transformers import MixtralConfig, Qwen3MoeConfig

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
}


def family_with(granularity: str, other: str = "llama") -> str:
    """A family that has units of a granularity: the other one unless these are experts."""
    return "mixtral" if "experts" in granularity else other
