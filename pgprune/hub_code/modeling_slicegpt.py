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
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.opt import modeling_opt as opt
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from .classification import SequenceClassifier
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


class SliceGPTLlamaForSequenceClassification(SequenceClassifier, llama.LlamaPreTrainedModel):
    """A sliced LLaMA with the head of a classifier."""

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


class SliceGPTMistralForSequenceClassification(SequenceClassifier, mistral.MistralPreTrainedModel):
    """A sliced Mistral with the head of a classifier."""

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


class SliceGPTQwen2ForSequenceClassification(SequenceClassifier, qwen2.Qwen2PreTrainedModel):
    """A sliced Qwen2 with the head of a classifier."""

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


class SliceGPTQwen3ForSequenceClassification(SequenceClassifier, qwen3.Qwen3PreTrainedModel):
    """A sliced Qwen3 with the head of a classifier."""

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


class SliceGPTOPTForSequenceClassification(SequenceClassifier, opt.OPTPreTrainedModel):
    """A sliced OPT with the head of a classifier."""

    config_class = SliceGPTOPTConfig
    _base_class = SliceGPTOPTModel
