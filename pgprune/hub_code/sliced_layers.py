"""Layers of a narrower residual stream; a copy is beside ``modeling_slicegpt.py``."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.opt import modeling_opt as opt


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
