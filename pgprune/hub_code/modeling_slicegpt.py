"""Decoders with a narrower residual stream: SliceGPT.

A copy of this file is in every sliced model, so that plain transformers (5.15 or newer) loads it:

    AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)

The residual stream is rotated and cut to ``config.slice_width`` before attention and before the MLP
of each layer; a shortcut maps it from one basis to the next, and the last one back to the full
width. Norms have no gain and divide by the dense width ``config.hidden_size``. Attention and MLP
are the stock modules of transformers with fewer inputs and outputs; heads and channels, and hence
the cache, are as in the dense model. If ``config.norm_biases``, the dense model's norms had biases,
and the projections that follow them and the head have biases too.
"""

import copy
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.opt import modeling_opt as opt
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3


class RMSN(nn.Module):
    """A norm without gain.

    Args:
        dense: the norm of the dense model, for its epsilon.
        hidden_size: width of the dense model, which the sum of squares is divided by.
    """

    def __init__(self, dense: Any, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.epsilon = getattr(dense, "variance_epsilon", None) or dense.eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Divides (..., width) by its root mean square, computed in at least float32."""
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        mean = wide.square().sum(-1, keepdim=True) / self.hidden_size  # R keeps the norm of x
        return (wide * torch.rsqrt(mean + self.epsilon)).to(hidden_states.dtype)


class SlicedLayer(GradientCheckpointingLayer):
    """A layer of the LLaMA kind: query, key, value, o; gate, up, down.

    Args:
        layer: a stock layer, which gives its attention and MLP.
        config: of the sliced model.
        outputs: width of the layer's output.
    """

    attention_shortcut: nn.Linear
    mlp_shortcut: nn.Linear

    def __init__(self, layer: Any, config: Any, outputs: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.attention_type = getattr(layer, "attention_type", None)
        self.input_layernorm = RMSN(layer.input_layernorm, config.hidden_size)
        self.post_attention_layernorm = RMSN(layer.post_attention_layernorm, config.hidden_size)
        _resize(self, config, outputs, "self_attn.o_proj", "mlp.down_proj")

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Runs the layer: (B, T, width) -> (B, T, outputs)."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = self.attention_shortcut(hidden_states) + attended
        transformed = self.mlp(self.post_attention_layernorm(hidden_states))
        return self.mlp_shortcut(hidden_states) + transformed


class SlicedOPTLayer(opt.OPTDecoderLayer):
    """A layer of OPT.

    Args:
        config: of the sliced model.
        index: of the layer.
        outputs: width of the layer's output.
    """

    attention_shortcut: nn.Linear
    mlp_shortcut: nn.Linear

    def __init__(self, config: Any, index: int, outputs: int) -> None:
        super().__init__(config, index)
        layer: Any = self
        layer.self_attn_layer_norm = RMSN(self.self_attn_layer_norm, config.hidden_size)
        layer.final_layer_norm = RMSN(self.final_layer_norm, config.hidden_size)
        _resize(self, config, outputs, "self_attn.out_proj", "fc2")

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Runs the layer: (B, T, width) -> (B, T, outputs)."""
        normed = self.self_attn_layer_norm(hidden_states)
        attended = self._drop(self.self_attn(hidden_states=normed, **kwargs)[0])
        hidden_states = self.attention_shortcut(hidden_states) + attended
        expanded = self.activation_fn(self.fc1(self.final_layer_norm(hidden_states)))
        return self.mlp_shortcut(hidden_states) + self._drop(self.fc2(expanded))

    def _drop(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)


def _resize(layer: nn.Module, config: Any, outputs: int, attention: str, mlp: str) -> None:
    """Gives all projections of a layer their sliced shapes, and adds the shortcuts.

    Args:
        layer: the layer.
        config: of the sliced model.
        outputs: width of the layer's output.
        attention: the attention output projection; it and the next write to the residual stream.
        mlp: the MLP down projection; all other projections read from the stream.
    """
    width = config.slice_width
    writers = {attention: width, mlp: outputs}
    projections = {n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear)}
    for name, dense in projections.items():
        inputs, rows, bias = dense.in_features, writers.get(name), dense.bias is not None
        if rows is None:  # it reads from the stream
            inputs, rows, bias = width, dense.out_features, bias or config.norm_biases  # W shift
        parent, _, child = name.rpartition(".")
        setattr(layer.get_submodule(parent), child, nn.Linear(inputs, rows, bias=bias))
    layer.attention_shortcut = nn.Linear(width, width, bias=False)
    layer.mlp_shortcut = nn.Linear(width, outputs, bias=False)  # R2' R1


def _without_layers(config: Any) -> Any:
    """Returns a configuration without layers, which stock classes can build."""
    bare = copy.copy(config)
    bare.num_hidden_layers = 0
    return bare


class _SlicedDecoder(transformers.PreTrainedModel):
    """Makes a stock base model narrower."""

    _no_split_modules = ["SlicedLayer", "SlicedOPTLayer"]
    _layer_class: type[nn.Module]

    def __init__(self, config: Any) -> None:
        super().__init__(_without_layers(config))
        decoder: Any = getattr(self, "decoder", self)
        width, count = config.slice_width, config.num_hidden_layers
        outputs = [width] * (count - 1) + [config.hidden_size]  # the head is not sliced
        decoder.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        if self._layer_class is SlicedOPTLayer:
            positions = opt.OPTLearnedPositionalEmbedding
            decoder.embed_positions = positions(config.max_position_embeddings, width)
            decoder.final_layer_norm = RMSN(decoder.final_layer_norm, config.hidden_size)
            layers: list[nn.Module]
            layers = [SlicedOPTLayer(config, i, outputs[i]) for i in range(count)]
        else:
            decoder.norm = RMSN(decoder.norm, config.hidden_size)
            dense = (self._layer_class(config, i) for i in range(count))
            layers = [SlicedLayer(layer, config, outputs[i]) for i, layer in enumerate(dense)]
        decoder.layers = nn.ModuleList(layers)
        config._attn_implementation = self.config._attn_implementation  # checked by super
        self.config = decoder.config = config
        self.post_init()


class _SlicedCausalLM(transformers.PreTrainedModel):
    """Makes a stock causal LM use a sliced base model."""

    _auto_class = "AutoModelForCausalLM"
    _no_split_modules = ["SlicedLayer", "SlicedOPTLayer"]
    _base_class: type[transformers.PreTrainedModel]

    def __init__(self, config: Any) -> None:
        super().__init__(_without_layers(config))
        config._attn_implementation = self.config._attn_implementation
        self.model = self._base_class(config)
        bias = config.norm_biases  # of the final norm, folded into the head
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=bias)
        self.config = config
        self.post_init()


class SliceGPTLlamaConfig(transformers.LlamaConfig):
    """A sliced LLaMA."""

    model_type = "pgprune_slicegpt_llama"
    _auto_class = "AutoConfig"


class SliceGPTLlamaModel(_SlicedDecoder, llama.LlamaModel):
    """A sliced LLaMA without its head."""

    config_class = SliceGPTLlamaConfig
    _layer_class = llama.LlamaDecoderLayer
    _can_record_outputs = {"hidden_states": SlicedLayer, "attentions": llama.LlamaAttention}


class SliceGPTLlamaForCausalLM(_SlicedCausalLM, llama.LlamaForCausalLM):
    """A sliced LLaMA."""

    config_class = SliceGPTLlamaConfig
    _base_class = SliceGPTLlamaModel


class SliceGPTMistralConfig(transformers.MistralConfig):
    """A sliced Mistral."""

    model_type = "pgprune_slicegpt_mistral"
    _auto_class = "AutoConfig"


class SliceGPTMistralModel(_SlicedDecoder, mistral.MistralModel):
    """A sliced Mistral without its head."""

    config_class = SliceGPTMistralConfig
    _layer_class = mistral.MistralDecoderLayer
    _can_record_outputs = {"hidden_states": SlicedLayer, "attentions": mistral.MistralAttention}


class SliceGPTMistralForCausalLM(_SlicedCausalLM, mistral.MistralForCausalLM):
    """A sliced Mistral."""

    config_class = SliceGPTMistralConfig
    _base_class = SliceGPTMistralModel


class SliceGPTQwen2Config(transformers.Qwen2Config):
    """A sliced Qwen2."""

    model_type = "pgprune_slicegpt_qwen2"
    _auto_class = "AutoConfig"


class SliceGPTQwen2Model(_SlicedDecoder, qwen2.Qwen2Model):
    """A sliced Qwen2 without its head."""

    config_class = SliceGPTQwen2Config
    _layer_class = qwen2.Qwen2DecoderLayer
    _can_record_outputs = {"hidden_states": SlicedLayer, "attentions": qwen2.Qwen2Attention}


class SliceGPTQwen2ForCausalLM(_SlicedCausalLM, qwen2.Qwen2ForCausalLM):
    """A sliced Qwen2."""

    config_class = SliceGPTQwen2Config
    _base_class = SliceGPTQwen2Model


class SliceGPTQwen3Config(transformers.Qwen3Config):
    """A sliced Qwen3."""

    model_type = "pgprune_slicegpt_qwen3"
    _auto_class = "AutoConfig"


class SliceGPTQwen3Model(_SlicedDecoder, qwen3.Qwen3Model):
    """A sliced Qwen3 without its head."""

    config_class = SliceGPTQwen3Config
    _layer_class = qwen3.Qwen3DecoderLayer
    _can_record_outputs = {"hidden_states": SlicedLayer, "attentions": qwen3.Qwen3Attention}


class SliceGPTQwen3ForCausalLM(_SlicedCausalLM, qwen3.Qwen3ForCausalLM):
    """A sliced Qwen3."""

    config_class = SliceGPTQwen3Config
    _base_class = SliceGPTQwen3Model


class SliceGPTOPTConfig(transformers.OPTConfig):
    """A sliced OPT."""

    model_type = "pgprune_slicegpt_opt"
    _auto_class = "AutoConfig"


class SliceGPTOPTModel(_SlicedDecoder, opt.OPTModel):
    """A sliced OPT without its head."""

    config_class = SliceGPTOPTConfig
    _layer_class = SlicedOPTLayer


class SliceGPTOPTForCausalLM(_SlicedCausalLM, opt.OPTForCausalLM):
    """A sliced OPT."""

    config_class = SliceGPTOPTConfig
    _base_class = SliceGPTOPTModel
