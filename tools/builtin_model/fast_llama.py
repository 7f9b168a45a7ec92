"""Computes the training loss of a Llama twice as fast on a CPU as Hugging Face does."""

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM


def fast_loss(model: LlamaForCausalLM, ids: Tensor, precision: torch.dtype) -> Tensor:
    """Computes ``model(ids, labels=ids).loss`` in a precision, for ids (windows, length)."""
    config, length = model.config, ids.shape[1]
    groups = config.num_key_value_heads or config.num_attention_heads
    size = config.head_dim or config.hidden_size // config.num_attention_heads
    shape = (config.num_attention_heads, groups, size)
    x = model.model.embed_tokens(ids).to(precision)
    cosine, sine = model.model.rotary_emb(x, torch.arange(length)[None])
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        parts = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        parts += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        parts += [layer.input_layernorm, layer.post_attention_layernorm]
        weights = [part.weight for part in parts]  # a plain list: one compiled layer serves all
        x = _layer(x, cosine[0], sine[0], future, weights, shape, config.rms_norm_eps)
    return _head(x, model.model.norm.weight, model.lm_head.weight, ids, config.rms_norm_eps)


@torch.compile(dynamic=False)
def _layer(
    x: Tensor,
    cosine: Tensor,
    sine: Tensor,
    future: Tensor,
    weights: list[Tensor],
    shape: tuple[int, int, int],
    epsilon: float,
) -> Tensor:
    """Computes a layer, with fused projections and without SDPA, slow on short windows."""
    query, key, value, out, gate, up, down, *norms = (weight.to(x.dtype) for weight in weights)
    batch, length, width = x.shape
    queries, groups, size = shape
    normed = functional.rms_norm(x, (width,), norms[0], epsilon)
    fused = functional.linear(normed, torch.cat((query, key, value)))
    heads = fused.view(batch, length, -1, size).transpose(1, 2)  # (b, heads, T, size)
    q, k, v = heads.split((queries, groups, groups), 1)
    q, k = _rotate(q, cosine, sine), _rotate(k, cosine, sine)
    k, v = (each.repeat_interleave(queries // groups, 1) for each in (k, v))
    # softmax in float32, as the model's own attention computes it
    scores = (q @ k.mT).float() * size**-0.5
    attended = scores.masked_fill(future, float("-inf")).softmax(-1).to(x.dtype) @ v
    x = x + functional.linear(attended.transpose(1, 2).reshape(batch, length, -1), out)
    normed = functional.rms_norm(x, (width,), norms[1], epsilon)
    gated, linear = functional.linear(normed, torch.cat((gate, up))).chunk(2, -1)
    return x + functional.linear(functional.silu(gated) * linear, down)


@torch.compile(dynamic=False)
def _head(x: Tensor, norm: Tensor, embedding: Tensor, ids: Tensor, epsilon: float) -> Tensor:
    """Computes the mean next-token loss of the last layer's output."""
    normed = functional.rms_norm(x[:, :-1], x.shape[-1:], norm.to(x.dtype), epsilon)
    logits = functional.linear(normed, embedding.to(x.dtype)).float()
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Applies rotary positions."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat((-second, first), -1) * sine
