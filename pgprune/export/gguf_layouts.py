"""What llama.cpp computes under the name of an architecture, and what its files call it.

Sources: llama.cpp, src/models/deci.cpp, qwen3.cpp, gemma2.cpp, gemma3.cpp, granite.cpp, phi3.cpp,
gptneox.cpp, gpt2.cpp, and its converter, which adds 1 to the norms of Gemma.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig

from pgprune.errors import PruningError
from pgprune.models.families import family_of


@dataclass(frozen=True)
class Layout:
    """An architecture of llama.cpp.

    Attributes:
        name: of the architecture.
        activations: of transformers that it computes.
        varied: whether layers may differ in their numbers of heads and channels.
        biases: whether projections may have biases.
        turned: whether its rotary embedding turns neighbouring rows of a head.
        scaled: whether a scaled rotary embedding of fixed frequencies can be written.
        sliding: whether it knows sliding windows and which layers have one.
        filled: whether heads must fill the width, as those of the dense model do.
        norm_shift: what is added to the weights of norms in the file.
        names: what it calls modules, beside or in place of ``NAMES``.
        values: values of the configuration, by the writer's method.
    """

    name: str
    activations: tuple[str, ...] = ("silu", "swish")
    varied: bool = False
    biases: bool = False
    turned: bool = False
    scaled: bool = False
    sliding: bool = False
    filled: bool = False
    norm_shift: float = 0.0
    names: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)

    def write_values(self, writer: Any, config: PretrainedConfig, kept: Sequence[int]) -> None:
        """Writes what only this architecture has: multipliers, soft-capping, sliding windows.

        Args:
            writer: of the file.
            config: of the dense model.
            kept: the index in the dense model of each layer of the file.
        """
        for method, name in self.values.items():
            if getattr(config, name) is not None:
                getattr(writer, method)(getattr(config, name))
        if self.sliding:
            writer.add_sliding_window(config.sliding_window)
            sliding = [config.layer_types[index] == "sliding_attention" for index in kept]
            writer.add_sliding_window_pattern(sliding)
            writer.add_rope_freq_base_swa(rope_of(config, "sliding_attention")["rope_theta"])


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""What llama.cpp calls each module; an output projection that is tied to the input it fills in."""

_SOFT_CAPS = {
    "add_attn_logit_softcapping": "attn_logit_softcapping",
    "add_final_logit_softcapping": "final_logit_softcapping",
}
_GEMMA: dict[str, Any] = {
    "activations": ("gelu_pytorch_tanh",),
    "sliding": True,
    "norm_shift": 1.0,
    "names": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    "values": _SOFT_CAPS,
}

_GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # llama.cpp has one for all

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("deci", varied=True, biases=True, turned=True, scaled=True),
        Layout("qwen3"),
        Layout("gemma2", **_GEMMA),
        Layout("gemma3", **_GEMMA),
        Layout(
            "phi3",
            filled=True,
            names={"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
        ),
        Layout(
            "gptneox",
            activations=_GELU,
            biases=True,
            filled=True,
            names={
                "gpt_neox.embed_in": "token_embd",
                "gpt_neox.final_layer_norm": "output_norm",
                "attention.query_key_value": "attn_qkv",
                "attention.dense": "attn_output",
                "mlp.dense_h_to_4h": "ffn_up",
                "mlp.dense_4h_to_h": "ffn_down",
            },
            values={
                "add_layer_norm_eps": "layer_norm_eps",
                "add_parallel_residual": "use_parallel_residual",
            },
        ),
        Layout(
            "gpt2",
            activations=_GELU,
            biases=True,
            filled=True,
            names={
                "transformer.wte": "token_embd",
                "transformer.wpe": "position_embd",
                "transformer.ln_f": "output_norm",
                "ln_1": "attn_norm",
                "attn.c_attn": "attn_qkv",
                "attn.c_proj": "attn_output",
                "ln_2": "ffn_norm",
                "mlp.c_fc": "ffn_up",
                "mlp.c_proj": "ffn_down",
            },
            values={"add_layer_norm_eps": "layer_norm_epsilon"},
        ),
        Layout(
            "granite",
            turned=True,
            values={
                "add_attention_scale": "attention_multiplier",
                "add_embedding_scale": "embedding_multiplier",
                "add_residual_scale": "residual_multiplier",
                "add_logit_scale": "logits_scaling",
            },
        ),
    )
}
"""Every architecture that pruned models are written as, by its name."""


def layout_of(config: PretrainedConfig) -> Layout:
    """Returns llama.cpp's architecture for a dense model.

    Raises:
        PruningError: there is none.
    """
    name = family_of(config).gguf
    if name is None:
        raise PruningError(
            f"pgprune writes no GGUF file of the family {config.model_type}; choose --format hf, "
            "with --uniform if llama.cpp is to convert it and knows the family"
        )
    layout = LAYOUTS[name]
    keys = ("hidden_activation", "activation_function", "hidden_act")
    activation = next(filter(None, (getattr(config, key, None) for key in keys)))
    if activation not in layout.activations:
        raise PruningError(
            f"llama.cpp computes {name} with {layout.activations[0]}, but the model has "
            f"{activation!r}; choose --format hf"
        )
    scale, size = getattr(config, "query_pre_attn_scalar", None), getattr(config, "head_dim", None)
    if scale != size and scale is not None:
        raise PruningError(
            f"llama.cpp divides attention scores of {name} by the root of the size of a head, "
            f"{size}, but the model by that of {scale}; choose --format hf"
        )
    return layout


def rope_of(config: PretrainedConfig, kind: str = "full_attention") -> dict[str, Any]:
    """Returns the parameters of the rotary embedding of a kind of layer; empty without one."""
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    return dict(parameters.get(kind) or parameters)
