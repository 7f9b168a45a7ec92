"""Fused and transposed projections as plain ones; a copy is beside ``modeling_pgprune.py``.

Some stock layers compute query, key and value, or gate and up, by one matrix, or store a matrix as
(inputs, outputs). A layer is *open* when each projection is an ``nn.Linear`` of its own; the stock
modules around them compute as before.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Fused(NamedTuple):
    """A stock module that is no plain projection.

    Attributes:
        path: of the module, from a layer.
        parts: names of the projections that it computes, in order; none where it computes one.
        by_head: whether the outputs of the parts take turns head by head.
        transposed: whether its weight is (inputs, outputs).
    """

    path: str
    parts: tuple[str, ...] = ()
    by_head: bool = False
    transposed: bool = False


class Joined(nn.Module):
    """Projections whose outputs a stock layer expects in one tensor.

    Args:
        parts: the projections by name, in order.
        head_dim: width of a head where their outputs take turns head by head, else None.
    """

    def __init__(self, parts: Mapping[str, nn.Module], head_dim: int | None) -> None:
        super().__init__()
        self.head_dim = head_dim
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Computes all outputs: (..., D) -> (..., sum of widths)."""
        return join([part(hidden_states) for part in self.children()], self.head_dim)


def join(parts: Sequence[Tensor], head_dim: int | None) -> Tensor:
    """Joins outputs (..., F) of several projections along the last dimension."""
    if head_dim is None:
        return torch.cat(list(parts), dim=-1)
    heads = [part.unflatten(-1, (-1, head_dim)) for part in parts]  # (..., heads, d)
    return torch.cat(heads, dim=-1).flatten(-2)


def split(joined: Tensor, widths: Sequence[int], head_dim: int | None) -> Sequence[Tensor]:
    """Undoes ``join``, with the width of each part."""
    if head_dim is None:
        return joined.split(list(widths), dim=-1)
    heads = joined.unflatten(-1, (-1, len(widths) * head_dim))  # (..., heads, parts * d)
    return [part.flatten(-2) for part in heads.split(head_dim, dim=-1)]


def open_projections(
    layer: nn.Module, rows: Sequence[Fused], config: Any
) -> Iterator[tuple[Fused, nn.Module]]:
    """Opens a stock layer in place, and yields what is now in the place of each stock module.

    What is open already, or was pruned as a whole, stays as it is.

    Args:
        layer: with dense weights.
        rows: what is fused in it.
        config: of the layer.
    """
    for row in rows:
        *parents, name = row.path.split(".")
        block: Any = layer
        for parent in parents:  # many times quicker than get_submodule, and asked for often
            block = block._modules.get(parent) if block is not None else None
        stock: Any = block._modules.get(name) if block is not None else None
        if not isinstance(stock, Conv1D if row.transposed else nn.Linear):
            continue
        weight = stock.weight if row.transposed else stock.weight.t()  # (inputs, outputs)
        widths, size = _widths(row, config, weight.shape[1]), head_dim(row, config)
        biases = split(stock.bias, widths, size) if stock.bias is not None else [None] * len(widths)
        linears = [
            _linear(part, bias)
            for part, bias in zip(split(weight, widths, size), biases, strict=True)
        ]
        named = dict(zip(row.parts, linears, strict=False))
        opened: nn.Module = Joined(named, size) if row.parts else linears[0]
        block._modules[name] = opened
        yield row, opened


def close_weights(weights: dict[str, Tensor], prefix: str, row: Fused, size: int | None) -> None:
    """Puts the weights of an open module back in their stock names and layout, in place.

    Args:
        weights: by name, of a layer or a model.
        prefix: of the module's names among them, with a dot at the end.
        row: which module it is.
        size: width of a head where parts take turns, as ``head_dim`` gives it.
    """
    for kind in ("weight", "bias"):
        names = [f"{prefix}{part}.{kind}" for part in row.parts] or [f"{prefix}{kind}"]
        if not all(name in weights for name in names):
            continue  # no bias, or adapters are in its place
        joined = join([weights.pop(name).t() for name in names], size)  # (inputs, outputs)
        turned = joined if row.transposed else joined.t()
        weights[f"{prefix}{kind}"] = turned.contiguous()


def head_dim(row: Fused, config: Any) -> int | None:
    """Returns the width of a head where parts take turns head by head, else None."""
    if not row.by_head:
        return None
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class OwnConfig:
    """A model's configuration with some values of one layer; it sees later changes of the rest."""

    def __init__(self, config: Any, **values: Any) -> None:
        self.__dict__.update(values, _config=config)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_config":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._config, name)


def count_heads(
    attention: Any, counts: Mapping[str, str], heads: int, kv_heads: int, head_dim: int
) -> None:
    """Tells an attention module how many heads its projections have.

    Args:
        attention: the stock module.
        counts: attributes of the module or of its configuration (``config.``), and what each holds:
            the number of ``heads`` or ``kv_heads``, or the ``width`` of all heads.
        heads: number of query heads.
        kv_heads: number of kv heads.
        head_dim: width of a head.
    """
    numbers = {"heads": heads, "kv_heads": kv_heads, "width": heads * head_dim}
    for path, number in counts.items():
        parent, _, name = path.rpartition(".")
        if parent:  # the configuration, which all layers share
            attention.config = OwnConfig(attention.config, **{name: numbers[number]})
        else:
            setattr(attention, name, numbers[number])


def _widths(row: Fused, config: Any, outputs: int) -> list[int]:
    """Returns the number of outputs of each part."""
    shares = [1] * max(1, len(row.parts))
    if "query" in row.parts:
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        shares[0] = config.num_attention_heads // kv_heads  # query heads of a kv head
    return [share * outputs // sum(shares) for share in shares]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Makes a projection of a weight (inputs, outputs); it shares no memory with others."""
    inputs, outputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    rows = weight.detach().t().clone(memory_format=torch.contiguous_format)
    linear.weight = nn.Parameter(rows, weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), weight.requires_grad)
    return linear
