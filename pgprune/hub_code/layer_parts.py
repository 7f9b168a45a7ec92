"""Parts of pruned layers that stock ones lack; a copy is beside ``modeling_pgprune.py``."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused import Joined


class Constant(nn.Module):
    """A projection without inputs, which returns its bias or zero."""

    bias: nn.Parameter | None

    def __init__(self, projection: nn.Linear | None = None) -> None:
        super().__init__()
        self.register_parameter("bias", None if projection is None else projection.bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Returns the bias, or zero, at every position: (..., D) -> (..., D)."""
        return torch.zeros_like(hidden_states) + (0 if self.bias is None else self.bias)


class Headless(nn.Module):
    """Attention without heads, which returns the output bias if there is one."""

    # With "Attention" in its name, transformers would refuse to change the attention kernel.

    def __init__(self, attention: nn.Module | None = None, output: str = "o_proj") -> None:
        super().__init__()
        children = {} if attention is None else dict(attention.named_children())
        for name, child in children.items():
            if not isinstance(child, nn.Linear | Joined):  # norms of queries and keys
                self.add_module(name, child)
        self.layer_idx: int | None = None  # slot of the cache
        self.config: Any = None
        self.output = output
        self.add_module(output, Constant(children.get(output)))  # type: ignore[arg-type]

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Returns an output (B, T, D), and weights of no heads where stock attention returns some.

        So the attention weights of a model are one tensor for each layer, here (B, 0, T, S).
        """
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))  # GPT-NeoX has the latter
        keys = hidden_states[:, None, :, :1]  # (B, 1, T, 1): only T matters
        if cache is not None and self.layer_idx is not None:
            # Caches take the text's length from any slot, and take tokens back from all of them.
            keys, _ = cache.update(keys, keys, self.layer_idx)  # (B, 1, S, 1)
        weights = None
        if self.config is not None and self.config._attn_implementation == "eager":
            batch, length, _ = hidden_states.shape
            weights = hidden_states.new_zeros(batch, 0, length, keys.shape[2])
        return self.get_submodule(self.output)(hidden_states), weights


class Spread(nn.Module):
    """Fills kv heads with zeros after the value dimensions that they keep.

    Attention then runs at the full width of a head, with any kernel and any cache.

    Args:
        kept: how many value dimensions each kv head keeps.
        head_dim: how many it has with zeros.
    """

    def __init__(self, kept: Sequence[int], head_dim: int) -> None:
        super().__init__()
        self.kept, self.head_dim = list(kept), head_dim

    def forward(self, values: Tensor) -> Tensor:
        """Spreads values: (..., sum of kept) -> (..., kv heads * head_dim)."""
        heads = values.split(self.kept, dim=-1)
        padded = [F.pad(head, (0, self.head_dim - head.shape[-1])) for head in heads]
        return torch.cat(padded, dim=-1)


class Narrow(Spread):
    """Takes what attention gives for the kept value dimensions, of all query heads."""

    def forward(self, outputs: Tensor) -> Tensor:
        """Narrows outputs: (..., query heads * head_dim) -> (..., queries * sum of kept)."""
        heads = outputs.unflatten(-1, (len(self.kept), -1, self.head_dim)).unbind(-3)
        parts = [head[..., :kept] for head, kept in zip(heads, self.kept, strict=True)]
        return torch.cat([part.flatten(-2) for part in parts], dim=-1)


def keep_values(
    attention: Any,
    kept: Sequence[int],
    output: str = "o_proj",
    value: str = "v_proj",
    head_dim: int | None = None,
) -> None:
    """Lets attention have kept value dimensions only: ``v_proj.linear`` and ``o_proj.linear``.

    The projections stay plain linear layers, so that adapters and quantisers can replace them.

    Args:
        attention: a stock attention module.
        kept: how many value dimensions each kv head keeps; empty for all.
        output: name of the output projection.
        value: path of the value projection.
        head_dim: width of a head; None takes what the module says.
    """
    if not kept:
        return
    v, o = attention.get_submodule(value), attention.get_submodule(output)
    size = head_dim or attention.head_dim
    queries = o.in_features // (len(kept) * size)  # of one kv head
    values = nn.Linear(v.in_features, sum(kept), bias=v.bias is not None)
    outputs = nn.Linear(queries * sum(kept), o.out_features, bias=o.bias is not None)
    parts: dict[str, nn.Module] = {"linear": values, "spread": Spread(kept, size)}
    attention.set_submodule(value, nn.Sequential(OrderedDict(parts)))
    parts = {"narrow": Narrow(kept, size), "linear": outputs}
    attention.add_module(output, nn.Sequential(OrderedDict(parts)))


def add_biases(layer: nn.Module, own: Any) -> None:
    """Adds the biases of a repair to a layer, where its configuration names some."""
    for path in getattr(own, "biases", ()):
        linear: Any = layer.get_submodule(path)
        linear.bias = nn.Parameter(torch.zeros(linear.out_features))
