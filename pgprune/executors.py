"""Two ways to run one decoder layer under K masks, with the same result.

``masked`` multiplies: all masks in one batch at the price of dense layers. ``sliced`` computes
kept units only: one mask after another, each at the price of what it keeps.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pgprune.families import Family
from pgprune.units import PruningUnits


@dataclass(frozen=True)
class LayerCall:
    """One decoder layer and the arguments it is called with, besides the hidden states."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, hidden: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """Runs the layer, with other weights if asked: (N, T, D) -> (N, T, D)."""
        if weights:
            output = functional_call(self.layer, weights, (hidden, *self.args), self.kwargs)
        else:
            output = self.layer(hidden, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


class LayerMask:
    """The part of K masks that one layer needs.

    Args:
        masks: (K, n).
        units: the units of the whole model.
        index: the layer.
        family: where the layer's projections are.

    Attributes:
        parts: for each kind of unit, the masks of this layer's units, (K, units of the kind);
            blocks of channels are spelt out, (K, channels).
        shape: of the layer.
        family: of the model.
    """

    def __init__(self, masks: Tensor, units: PruningUnits, index: int, family: Family) -> None:
        self.family = family
        self.shape = units.shapes[index]
        first = index * len(units.kinds)
        self.parts = {
            group.kind: masks[:, group.start : group.stop]
            for group in units.groups[first : first + len(units.kinds)]
        }
        if "channels" in self.parts and units.channel_block > 1:
            self.parts["channels"] = self.parts["channels"].repeat_interleave(
                units.channel_block, dim=1
            )

    def kept(self, kind: str, block: str) -> Tensor | None:
        """Indices of the heads or channels that one mask keeps; None where it keeps all."""
        if block in self.parts:
            return None if self.parts[block][0, 0] else torch.empty(0, dtype=torch.int64)
        if kind not in self.parts or bool(self.parts[kind][0].all()):
            return None
        return torch.nonzero(self.parts[kind][0]).flatten()

    def output_columns(self) -> Tensor | None:
        """Which inputs of the attention output projection are kept, (K, query heads * d)."""
        if "heads" not in self.parts:
            return None
        width = self.shape.query_heads_per_group * self.shape.head_dim
        return self.parts["heads"].repeat_interleave(width, dim=1)


def run_masked(call: LayerCall, states: Tensor, mask: LayerMask) -> Tensor:
    """All K masks as one batch: states (K, B, T, D) -> (K, B, T, D)."""
    if "layer" in mask.parts:
        keep = mask.parts["layer"][:, :, None, None].bool().to(states.device)  # (K, 1, 1, 1)
        return torch.where(keep, call(states.flatten(0, 1)).view_as(states), states)
    family = mask.family
    inputs = {family.output: mask.output_columns(), family.down: mask.parts.get("channels")}
    outputs = {family.output: mask.parts.get("attention"), family.down: mask.parts.get("mlp")}
    hooks = [
        call.layer.get_submodule(path).register_forward_pre_hook(
            lambda module, args, keep=keep: (_multiply(args[0], keep), *args[1:])
        )
        for path, keep in inputs.items()
        if keep is not None
    ] + [
        call.layer.get_submodule(path).register_forward_hook(
            lambda module, args, output, keep=keep: _multiply(output, keep)
        )
        for path, keep in outputs.items()
        if keep is not None
    ]
    try:
        return call(states.flatten(0, 1)).view_as(states)
    finally:
        for hook in hooks:
            hook.remove()


def run_sliced(call: LayerCall, states: Tensor, mask: LayerMask) -> Tensor:
    """One mask, kept units only: states (1, B, T, D) -> (1, B, T, D)."""
    (state,) = states
    if "layer" in mask.parts:
        return call(state)[None] if mask.parts["layer"][0] else states
    weights: dict[str, Tensor] = {}
    attention: AbstractContextManager[None] = nullcontext()
    heads = mask.kept("heads", "attention")
    channels = mask.kept("channels", "mlp")
    if heads is not None and len(heads):
        weights |= _sliced_heads(call.layer, mask, heads)
        attention = _head_count(call.layer, mask, len(heads))
    elif heads is not None:
        attention = _no_attention(call.layer, mask.family, bias="heads" in mask.parts)
    if channels is not None:
        weights |= _sliced_channels(call.layer, mask.family, channels, "channels" in mask.parts)
    with attention:
        return call(state, weights)[None]


EXECUTORS: dict[str, Callable[[LayerCall, Tensor, LayerMask], Tensor]] = {
    "masked": run_masked,
    "sliced": run_sliced,
}
"""Every executor by its name."""


def _multiply(tensor: Tensor, keep: Tensor) -> Tensor:
    """Multiplies (K*B, T, F), or OPT's (K*B*T, F), by (K, F) or (K, 1); 0 times inf is 0."""
    rows = tensor.view(len(keep), -1, tensor.shape[-1])
    return rows.where(keep[:, None].to(tensor.device, torch.bool), 0).view_as(tensor)


def _sliced_heads(layer: nn.Module, mask: LayerMask, kept: Tensor) -> dict[str, Tensor]:
    """Weights of the attention projections for the kept kv groups."""
    family, shape = mask.family, mask.shape
    rows = _expand(kept, shape.head_dim)
    queries = _expand(kept, shape.head_dim * shape.query_heads_per_group)
    return {
        **_rows(layer, family.key, rows),
        **_rows(layer, family.value, rows),
        **_rows(layer, family.query, queries),
        **_columns(layer, family.output, queries),
    }


def _sliced_channels(
    layer: nn.Module, family: Family, kept: Tensor, keep_bias: bool
) -> dict[str, Tensor]:
    """Weights of the MLP projections for the kept channels."""
    weights = _columns(layer, family.down, kept)
    for path in family.expand:
        weights |= _rows(layer, path, kept)
    bias = layer.get_submodule(family.down).bias
    if isinstance(bias, Tensor) and not keep_bias:
        weights[f"{family.down}.bias"] = torch.zeros_like(bias)
    return weights


def _expand(kept: Tensor, width: int) -> Tensor:
    """Indices of all rows of the kept heads: (h,) -> (h * width,)."""
    return (kept[:, None] * width + torch.arange(width, device=kept.device)).flatten()


def _rows(layer: nn.Module, path: str, kept: Tensor) -> dict[str, Tensor]:
    parameters = dict(layer.get_submodule(path).named_parameters())
    return {
        f"{path}.{name}": p.index_select(0, kept.to(p.device)) for name, p in parameters.items()
    }


def _columns(layer: nn.Module, path: str, kept: Tensor) -> dict[str, Tensor]:
    weight = layer.get_submodule(path).get_parameter("weight")
    return {f"{path}.weight": weight.index_select(1, kept.to(weight.device))}


@contextmanager
def _head_count(layer: nn.Module, mask: LayerMask, kv_heads: int) -> Iterator[None]:
    """Tells an attention module that reads its number of heads how many are left."""
    name = mask.family.head_count
    if name is None:
        yield
        return
    attention = layer.get_submodule(mask.family.attention)
    dense = getattr(attention, name)
    setattr(attention, name, kv_heads * mask.shape.query_heads_per_group)
    try:
        yield
    finally:
        setattr(attention, name, dense)


@contextmanager
def _no_attention(layer: nn.Module, family: Family, bias: bool) -> Iterator[None]:
    """Makes the attention module return its output bias, or nothing, without computing."""
    attention = layer.get_submodule(family.attention)
    output = layer.get_submodule(family.output)

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        nothing = torch.zeros_like(hidden_states)
        if bias and isinstance(output.bias, Tensor):
            nothing += output.bias
        return nothing, None

    own = attention.__dict__.get("forward")  # accelerate's hooks put one there
    attention.forward = forward
    try:
        yield
    finally:
        if own is None:
            del attention.forward
        else:
            attention.forward = own
