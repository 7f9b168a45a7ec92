"""Decoders whose layers differ in their numbers of heads and channels, or lack whole blocks.

A copy of this file is in every pruned model, so that plain transformers (5.15 or newer) loads it:

    AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)

Nothing is reimplemented: the layers are the stock ones of transformers, built from the ``config``
of each layer, and weights have their stock names (but see ``keep_values``, and ``open_projections``
for what a stock layer fuses).
``config.per_layer_config`` holds the values of a layer that differ: ``num_attention_heads``,
``num_key_value_heads``, ``intermediate_size`` (``ffn_dim`` for OPT), ``skip`` for an attention or
MLP block that is pruned with its norm, ``biases`` for projections that have a bias here but not in
the dense model, and ``value_dims``, how many value dimensions each kv head keeps, if it is not all.
``config.stock_layers`` holds the values of a layer that differ in the dense model already,
``config.block_norms`` names the norms of each block where they are not those of LLaMA, and
``config.mlp_module`` the module of an MLP that is not called so, and
``config.layout`` where everything is in layers whose stock class fuses projections.
A block of 0 heads or 0 channels is not skipped: the bias of its output projection still acts.
"""

import copy
from collections import OrderedDict
from functools import cache
from typing import Any

import transformers
from torch import nn

from .family_classes import FamilyClasses
from .fitted_layers import fit_head_counts, fitted_layer, layout_of
from .layer_parts import Constant, Headless, add_biases, keep_values

_BLOCK_NORMS = {"attention": ["input_layernorm"], "mlp": ["post_attention_layernorm"]}


def _gated_layer(layer_class: type[nn.Module], config: Any, index: int) -> nn.Module:
    """Builds a layer of the LLaMA kind: query, key, value, o; gate, up, down."""
    own = copy.copy(config.per_layer_config[index])
    heads, skip = own.num_attention_heads, getattr(own, "skip", ())
    channels = getattr(own, "intermediate_size", 1)  # mixtures may have experts only
    if not heads:
        own.num_attention_heads = own.num_key_value_heads = 1  # the stock class needs heads
    own.intermediate_size = max(1, channels)
    layer: Any = layer_class(own, index)
    add_biases(layer, own)
    if "attention" in skip:
        layer.self_attn = Headless()
    elif not heads:
        layer.self_attn = Headless(layer.self_attn)
    elif kept := getattr(own, "value_dims", ()):
        keep_values(layer.self_attn, kept)
    if "mlp" in skip:
        setattr(layer, getattr(own, "mlp_module", "mlp"), Constant())
    elif not channels:
        layer.mlp = nn.Sequential(OrderedDict(down_proj=Constant(layer.mlp.down_proj)))
    norms = getattr(own, "block_norms", _BLOCK_NORMS)
    for name in (name for block in skip for name in norms[block]):
        setattr(layer, name, nn.Identity())
    return layer


def _opt_layer(layer_class: type[nn.Module], config: Any, index: int) -> nn.Module:
    """Builds a layer of OPT, whose stock attention needs heads that fill the width."""
    own = copy.copy(config.per_layer_config[index])
    heads, channels, skip = own.num_attention_heads, own.ffn_dim, getattr(own, "skip", ())
    own.num_attention_heads = own.hidden_size // own.head_dim  # the stock class needs all heads
    own.ffn_dim = max(1, channels)
    layer: Any = layer_class(own, index)
    add_biases(layer, own)
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
    build = _opt_layer if layer_class.__name__ == "OPTDecoderLayer" else _gated_layer
    if getattr(config, "layout", None):
        build = fitted_layer
    layers = nn.ModuleList(build(layer_class, config, i) for i in range(config.num_hidden_layers))
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "config"):
                module.config = config  # sees later changes of the attention kernel
        attention: Any = dict(layer.named_modules()).get(layout_of(config).attention)
        if attention is not None:  # some models have layers with something else in its place
            attention.layer_idx = index
            fit_head_counts(layer, config, index)
    return layers


def _without_layers(config: Any) -> Any:
    """Returns a configuration without layers, which stock classes can build.

    Where layers of the dense model differ, the rest of the model is made for all of them, and they
    are replaced after they were built.
    """
    bare = copy.copy(config)
    bare.per_layer_config = getattr(config, "stock_layers", None)
    if not bare.is_heterogeneous:
        bare.num_hidden_layers = 0
    return bare


def _recorded(stock: Any) -> dict[str, Any]:
    """Returns the outputs that a model records, and attention weights of layers without heads."""
    recorded = getattr(stock, "_can_record_outputs", None) or {}
    return recorded | {"attentions": [recorded.get("attentions"), Headless]}


@cache
def _recording(stock: Any) -> Any:
    """Makes a class of decoder that records such outputs."""
    values = {"_can_record_outputs": _recorded(stock), "__module__": __name__}
    return type(f"Pruned{stock.__name__}", (stock,), values)


class _PrunedDecoder(transformers.PreTrainedModel):
    """Makes a stock base model build its layers one by one, each from its own configuration."""

    _layer_class: type[nn.Module]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._can_record_outputs = _recorded(cls)

    def __init__(self, config: Any) -> None:
        super().__init__(_without_layers(config))
        decoder: Any = getattr(self, "decoder", self)  # only OPT has a decoder of its own
        if decoder is not self:
            stock: Any = type(decoder)
            self.decoder = decoder = _recording(stock)(self.config)
        setattr(decoder, layout_of(config).layers, _layers(self._layer_class, config))
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
        parts, kind = self.named_children(), transformers.PreTrainedModel
        base = next(name for name, part in parts if isinstance(part, kind))
        setattr(self, base, self._base_class(config))  # base_model_prefix may be another name
        self.config = config
        self.post_init()

    def _get_static_cache_init_shape(self) -> None:
        """Lets a static cache take the shape of each slot from what is first written to it."""
        return None


# Such as PGPruneLlamaConfig, PGPruneLlamaModel, PGPruneLlamaForCausalLM.
__getattr__ = FamilyClasses(__name__, "PGPrune", "pgprune", _PrunedDecoder, _PrunedCausalLM).find
