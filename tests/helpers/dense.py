"""Configurations of small models without experts, one of each family."""

from transformers import (
    ArceeConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    HunYuanDenseV1Config,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    SeedOssConfig,
    SmolLM3Config,
)

VOCABULARY = 48
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2, "intermediate_size": 12}
_MIXED = {
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
CONFIGS = {
    "llama": LlamaConfig(**_GROUPED, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**_GROUPED, sliding_window=5),
    "qwen2": Qwen2Config(**_GROUPED),
    "qwen3": Qwen3Config(**_GROUPED, head_dim=10),  # not hidden_size / heads
    "opt": OPTConfig(**_COMMON, ffn_dim=12, word_embed_proj_dim=32),
    "gemma2": Gemma2Config(
        **_GROUPED, **_MIXED, head_dim=8, attn_logit_softcapping=8.0, final_logit_softcapping=20.0
    ),
    "gemma3_text": Gemma3TextConfig(**_GROUPED, **_MIXED, head_dim=10, query_pre_attn_scalar=12),
    "gemma4_text": Gemma4TextConfig(
        **_COMMON | {"num_hidden_layers": 4},
        num_key_value_heads=2,
        intermediate_size=12,
        head_dim=8,
        global_head_dim=12,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=6,
        final_logit_softcapping=20.0,
    ),
    "gemma": GemmaConfig(**_GROUPED, head_dim=10),
    "granite": GraniteConfig(
        **_GROUPED,
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        attention_multiplier=0.3,
        logits_scaling=2.0,
        attention_bias=True,
    ),
    "smollm3": SmolLM3Config(
        **_GROUPED, **_MIXED, use_sliding_window=True, no_rope_layers=[0, 1, 1], pad_token_id=0
    ),
    "olmo2": Olmo2Config(**_GROUPED),
    "olmo3": Olmo3Config(**_GROUPED, **_MIXED),
    "ministral3": Ministral3Config(**_GROUPED, head_dim=10, sliding_window=5),
    "seed_oss": SeedOssConfig(**_GROUPED, head_dim=10),
    "hunyuan_v1_dense": HunYuanDenseV1Config(**_GROUPED, head_dim=10, attention_bias=True),
    "arcee": ArceeConfig(**_GROUPED, mlp_bias=True),
    "qwen3_5_text": Qwen3_5TextConfig(
        **_GROUPED,
        head_dim=8,
        layer_types=["linear_attention", "full_attention", "full_attention"],
        linear_key_head_dim=6,
        linear_value_head_dim=5,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    ),
    "phi3": Phi3Config(**_GROUPED, pad_token_id=0, partial_rotary_factor=0.5, sliding_window=6),
    "phi": PhiConfig(**_GROUPED, bos_token_id=0, eos_token_id=2),
    "gpt_neox": GPTNeoXConfig(**_COMMON, intermediate_size=12, rotary_pct=0.5),
    "gpt2": GPT2Config(**_COMMON, n_inner=12, bos_token_id=0, eos_token_id=2),
}
