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

import transformers
from torch import nn
from transformers.models.opt import modeling_opt as opt

from .family_classes import FamilyClasses
from .sliced_layers import RMSN, SlicedLayer, SlicedOPTLayer


def _without_layers(config: Any) -> Any:
    """Returns a configuration without layers, which stock classes can build."""
    bare = copy.copy(config)
    bare.num_hidden_layers = 0
    return bare


class _SlicedDecoder(transformers.PreTrainedModel):
    """Makes a stock base model narrower."""

    _no_split_modules = ["SlicedLayer", "SlicedOPTLayer"]
    _layer_class: type[nn.Module]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        recorded: Any = cls._can_record_outputs  # of the stock class
        if recorded:
            cls._can_record_outputs = recorded | {"hidden_states": SlicedLayer}

    def __init__(self, config: Any) -> None:
        super().__init__(_without_layers(config))
        decoder: Any = getattr(self, "decoder", self)
        width, count = config.slice_width, config.num_hidden_layers
        outputs = [width] * (count - 1) + [config.hidden_size]  # the head is not sliced
        decoder.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        if self._layer_class is opt.OPTDecoderLayer:
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


# Such as SliceGPTLlamaConfig, SliceGPTLlamaModel, SliceGPTLlamaForCausalLM.
__getattr__ = FamilyClasses(
    __name__, "SliceGPT", "pgprune_slicegpt", _SlicedDecoder, _SlicedCausalLM
).find
