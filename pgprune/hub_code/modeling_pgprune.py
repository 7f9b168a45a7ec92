"""Decoders whose layers differ in their numbers of heads and channels, or lack whole blocks.

A copy of this file is in every pruned model, so that plain transformers (5.15 or newer) loads it:

    AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)

Nothing is reimplemented: the layers are the stock ones of transformers, built from the ``config``
of each layer, and weights have their stock names (but see ``keep_values``).
``config.per_layer_config`` holds the values of a layer that differ: ``num_attention_heads``,
``num_key_value_heads``, ``intermediate_size`` (``ffn_dim`` for OPT), ``skip`` for an attention or
MLP block that is pruned with its norm, ``biases`` for projections that have a bias here but not in
the dense model, and ``value_dims``, how many value dimensions each kv head keeps, if it is not all.
A block of 0 heads or 0 channels is not skipped: the bias of its output projection still acts.
"""

import copy
from collections import OrderedDict
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.opt import modeling_opt as opt
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from .classification import SequenceClassifier
from .layer_parts import Constant, Headless, keep_values


def _with_biases(layer: nn.Module, own: Any) -> nn.Module:
    """Adds the biases of a repair to a layer."""
    for path in getattr(own, "biases", ()):
        linear: Any = layer.get_submodule(path)
        linear.bias = nn.Parameter(torch.zeros(linear.out_features))
    return layer


def _gated_layer(layer_class: type[nn.Module], config: Any, index: int) -> nn.Module:
    """Builds a layer of the LLaMA kind: query, key, value, o; gate, up, down."""
    own = copy.copy(config.per_layer_config[index])
    heads, channels, skip = own.num_attention_heads, own.intermediate_size, getattr(own, "skip", ())
    if not heads:
        own.num_attention_heads = own.num_key_value_heads = 1  # the stock class needs heads
    own.intermediate_size = max(1, channels)
    layer: Any = _with_biases(layer_class(own, index), own)
    if "attention" in skip:
        layer.self_attn, layer.input_layernorm = Headless(), nn.Identity()
    elif not heads:
        layer.self_attn = Headless(layer.self_attn)
    else:
        keep_values(layer.self_attn, getattr(own, "value_dims", ()))
    if "mlp" in skip:
        layer.mlp, layer.post_attention_layernorm = Constant(), nn.Identity()
    elif not channels:
        layer.mlp = nn.Sequential(OrderedDict(down_proj=Constant(layer.mlp.down_proj)))
    return layer


def _opt_layer(layer_class: type[nn.Module], config: Any, index: int) -> nn.Module:
    """Builds a layer of OPT, whose stock attention needs heads that fill the width."""
    own = copy.copy(config.per_layer_config[index])
    heads, channels, skip = own.num_attention_heads, own.ffn_dim, getattr(own, "skip", ())
    own.num_attention_heads = own.hidden_size // own.head_dim  # the stock class needs all heads
    own.ffn_dim = max(1, channels)
    layer: Any = _with_biases(layer_class(own, index), own)
    if "attention" in skip:
        layer.self_attn, layer.self_attn_layer_norm = Headless(), nn.Identity()
    elif not heads:
        layer.self_attn = Headless(layer.self_attn, "out_proj")
    elif heads != own.num_attention_heads:
        attention, width = layer.self_attn, heads * own.head_dim
        attention.num_heads = heads  # then with the projections of the kept heads
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(attention, name, nn.Linear(own.hidden_size, width, bias=own.enable_bias))
        bias = attention.out_proj.bias is not None
        attention.out_proj = nn.Linear(width, own.hidden_size, bias=bias)
    if heads and "attention" not in skip:
        keep_values(layer.self_attn, getattr(own, "value_dims", ()), "out_proj")
    if "mlp" in skip:
        layer.fc1, layer.fc2, layer.final_layer_norm = nn.Identity(), Constant(), nn.Identity()
    elif not channels:
        layer.fc1, layer.fc2 = nn.Identity(), Constant(layer.fc2)
    return layer


def _layers(layer_class: type[nn.Module], config: Any) -> nn.ModuleList:
    """Builds all layers of a model, with the numbers that caches and servers read."""
    build = _opt_layer if layer_class is opt.OPTDecoderLayer else _gated_layer
    layers = nn.ModuleList(build(layer_class, config, i) for i in range(config.num_hidden_layers))
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "config"):
                module.config = config  # sees later changes of the attention kernel
        own: Any = config.per_layer_config[index]
        attention: Any = layer.self_attn
        attention.layer_idx = index
        if not isinstance(attention, Headless):
            attention.num_heads = own.num_attention_heads
            attention.num_key_value_heads = getattr(own, "num_key_value_heads", attention.num_heads)
    return layers


def _without_layers(config: Any) -> Any:
    """Returns a configuration without layers, which stock classes can build."""
    bare = copy.copy(config)
    bare.per_layer_config = None  # it must have as many layers as the model
    bare.num_hidden_layers = 0
    return bare


class _OPTDecoder(opt.OPTDecoder):
    """What an OPT model keeps its layers in."""

    _can_record_outputs = {
        "hidden_states": opt.OPTDecoderLayer,
        "attentions": [opt.OPTAttention, Headless],
    }


class _PrunedDecoder(transformers.PreTrainedModel):
    """Makes a stock base model build its layers one by one, each from its own configuration."""

    _layer_class: type[nn.Module]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        recorded: Any = getattr(cls, "_can_record_outputs", {})  # of the stock class
        cls._can_record_outputs = recorded | {"attentions": [recorded.get("attentions"), Headless]}

    def __init__(self, config: Any) -> None:
        super().__init__(_without_layers(config))
        if hasattr(self, "decoder"):
            bare: Any = self.config
            self.add_module("decoder", _OPTDecoder(bare))
        decoder = getattr(self, "decoder", self)  # only OPT has a decoder of its own
        decoder.layers = _layers(self._layer_class, config)
        config._attn_implementation = self.config._attn_implementation  # checked by super
        self.config = decoder.config = config
        self.post_init()


class _PrunedCausalLM(transformers.PreTrainedModel):
    """Makes a stock causal LM use a pruned base model."""

    _auto_class = "AutoModelForCausalLM"
    _base_class: type[transformers.PreTrainedModel]

    def __init__(self, config: Any) -> None:
        super().__init__(_without_layers(config))
        config._attn_implementation = self.config._attn_implementation
        self.model = self._base_class(config)
        self.config = config
        self.post_init()

    def _get_static_cache_init_shape(self) -> None:
        """Lets a static cache take the shape of each slot from what is first written to it."""
        return None


class PGPruneLlamaConfig(transformers.LlamaConfig):
    """A pruned LLaMA."""

    model_type = "pgprune_llama"
    _auto_class = "AutoConfig"


class PGPruneLlamaModel(_PrunedDecoder, llama.LlamaModel):
    """A pruned LLaMA without its head."""

    config_class = PGPruneLlamaConfig
    _layer_class = llama.LlamaDecoderLayer


class PGPruneLlamaForCausalLM(_PrunedCausalLM, llama.LlamaForCausalLM):
    """A pruned LLaMA."""

    config_class = PGPruneLlamaConfig
    _base_class = PGPruneLlamaModel


class PGPruneLlamaForSequenceClassification(SequenceClassifier, llama.LlamaPreTrainedModel):
    """A pruned LLaMA with the head of a classifier."""

    config_class = PGPruneLlamaConfig
    _base_class = PGPruneLlamaModel


class PGPruneMistralConfig(transformers.MistralConfig):
    """A pruned Mistral."""

    model_type = "pgprune_mistral"
    _auto_class = "AutoConfig"


class PGPruneMistralModel(_PrunedDecoder, mistral.MistralModel):
    """A pruned Mistral without its head."""

    config_class = PGPruneMistralConfig
    _layer_class = mistral.MistralDecoderLayer


class PGPruneMistralForCausalLM(_PrunedCausalLM, mistral.MistralForCausalLM):
    """A pruned Mistral."""

    config_class = PGPruneMistralConfig
    _base_class = PGPruneMistralModel


class PGPruneMistralForSequenceClassification(SequenceClassifier, mistral.MistralPreTrainedModel):
    """A pruned Mistral with the head of a classifier."""

    config_class = PGPruneMistralConfig
    _base_class = PGPruneMistralModel


class PGPruneQwen2Config(transformers.Qwen2Config):
    """A pruned Qwen2."""

    model_type = "pgprune_qwen2"
    _auto_class = "AutoConfig"


class PGPruneQwen2Model(_PrunedDecoder, qwen2.Qwen2Model):
    """A pruned Qwen2 without its head."""

    config_class = PGPruneQwen2Config
    _layer_class = qwen2.Qwen2DecoderLayer


class PGPruneQwen2ForCausalLM(_PrunedCausalLM, qwen2.Qwen2ForCausalLM):
    """A pruned Qwen2."""

    config_class = PGPruneQwen2Config
    _base_class = PGPruneQwen2Model


class PGPruneQwen2ForSequenceClassification(SequenceClassifier, qwen2.Qwen2PreTrainedModel):
    """A pruned Qwen2 with the head of a classifier."""

    config_class = PGPruneQwen2Config
    _base_class = PGPruneQwen2Model


class PGPruneQwen3Config(transformers.Qwen3Config):
    """A pruned Qwen3."""

    model_type = "pgprune_qwen3"
    _auto_class = "AutoConfig"


class PGPruneQwen3Model(_PrunedDecoder, qwen3.Qwen3Model):
    """A pruned Qwen3 without its head."""

    config_class = PGPruneQwen3Config
    _layer_class = qwen3.Qwen3DecoderLayer


class PGPruneQwen3ForCausalLM(_PrunedCausalLM, qwen3.Qwen3ForCausalLM):
    """A pruned Qwen3."""

    config_class = PGPruneQwen3Config
    _base_class = PGPruneQwen3Model


class PGPruneQwen3ForSequenceClassification(SequenceClassifier, qwen3.Qwen3PreTrainedModel):
    """A pruned Qwen3 with the head of a classifier."""

    config_class = PGPruneQwen3Config
    _base_class = PGPruneQwen3Model


class PGPruneOPTConfig(transformers.OPTConfig):
    """A pruned OPT."""

    model_type = "pgprune_opt"
    _auto_class = "AutoConfig"


class PGPruneOPTModel(_PrunedDecoder, opt.OPTModel):
    """A pruned OPT without its head."""

    config_class = PGPruneOPTConfig
    _layer_class = opt.OPTDecoderLayer


class PGPruneOPTForCausalLM(_PrunedCausalLM, opt.OPTForCausalLM):
    """A pruned OPT."""

    config_class = PGPruneOPTConfig
    _base_class = PGPruneOPTModel


class PGPruneOPTForSequenceClassification(SequenceClassifier, opt.OPTPreTrainedModel):
    """A pruned OPT with the head of a classifier."""

    config_class = PGPruneOPTConfig
    _base_class = PGPruneOPTModel
