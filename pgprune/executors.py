"""Two ways to run one decoder layer under K masks, with the same result.

``masked`` multiplies: all masks in one batch at the price of dense layers. ``sliced`` computes
kept units only: one mask after another, each at the price of what it keeps.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from pgprune.errors import PruningError
from pgprune.families import Family
from pgprune.gathering import aligned
from pgprune.projections import KERNELS, Part, Products, calling, check_kernels, gathered
from pgprune.transfer import send
from pgprune.units import PruningUnits

Fill = Mapping[tuple[int, str], Tensor]
"""What pruned inputs of a projection are in place of zero, by layer and kind: (inputs,) each.

The kind is ``heads`` for the attention output projection and ``channels`` for the down projection.
"""


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
        fill: what pruned inputs are; None for zero.

    Attributes:
        parts: for each kind of unit, the masks of this layer's units, (K, units of the kind);
            blocks of channels are spelt out, (K, channels).
        shape: of the layer.
        family: of the model.
        fill: what pruned inputs are, by the path of their projection; empty for zero.
    """

    def __init__(
        self,
        masks: Tensor,
        units: PruningUnits,
        index: int,
        family: Family,
        fill: Fill | None = None,
    ) -> None:
        self.family = family
        kinds = {family.output: "heads", family.down: "channels"}
        self.fill = {path: fill[index, kind] for path, kind in kinds.items()} if fill else {}
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
        _multiply_inputs(call.layer.get_submodule(path), keep, mask.fill.get(path))
        for path, keep in inputs.items()
        if keep is not None
    ] + [
        _multiply_outputs(call.layer.get_submodule(path), keep, mask.fill.get(path))
        for path, keep in outputs.items()
        if keep is not None
    ]
    try:
        return call(states.flatten(0, 1)).view_as(states)
    finally:
        for hook in hooks:
            hook.remove()


def run_sliced(
    call: LayerCall, states: Tensor, mask: LayerMask, products: Products = gathered
) -> Tensor:
    """One mask, kept units only: states (1, B, T, D) -> (1, B, T, D)."""
    (state,) = states
    if "layer" in mask.parts:
        return call(state)[None] if mask.parts["layer"][0] else states
    parts: list[Part] = []
    attention: AbstractContextManager[None] = nullcontext()
    heads, channels = (
        None if kept is None else send(kept, state.device)
        for kept in (mask.kept("heads", "attention"), mask.kept("channels", "mlp"))
    )
    if heads is not None and len(heads):
        parts += _sliced_heads(call.layer, mask, heads)
        attention = _head_count(call.layer, mask, len(heads))
    elif heads is not None:
        constant = _constant(call.layer, mask, mask.family.output, heads)
        attention = _no_attention(call.layer, mask.family, constant)
    if channels is not None:
        parts += _sliced_channels(call.layer, mask, channels)
    with attention, products(call.layer, parts) as weights:
        return call(state, weights)[None]


EXECUTORS: dict[str, Callable[[LayerCall, Tensor, LayerMask], Tensor]] = {
    "masked": run_masked,
    "sliced": run_sliced,
}
"""Every executor by its name."""


def executor_of(
    name: str, kernels: str, device: torch.device
) -> Callable[[LayerCall, Tensor, LayerMask], Tensor]:
    """An executor by its name, with the kernels of ``pgprune.projections`` if it is sliced.

    Raises:
        PruningError: an unknown executor, or kernels that it cannot have on this device.
    """
    if name not in EXECUTORS:
        raise PruningError(f"executor {name!r} is unknown; choose one of {', '.join(EXECUTORS)}")
    check_kernels(kernels, name, device)
    return EXECUTORS[name] if name == "masked" else partial(run_sliced, products=KERNELS[kernels])


def _multiply_inputs(module: nn.Module, keep: Tensor, fill: Tensor | None) -> RemovableHandle:
    """Lets a projection get its inputs where they are kept, (K, inputs), else their fill."""
    return module.register_forward_pre_hook(
        lambda module, args: (_multiply(args[0], keep, fill), *args[1:])
    )


def _multiply_outputs(module: nn.Module, keep: Tensor, fill: Tensor | None) -> RemovableHandle:
    """Lets a projection give its outputs where its block is kept, (K, 1), else those of a fill."""
    gone = None if fill is None else module(fill)  # (D,)
    return module.register_forward_hook(lambda module, args, output: _multiply(output, keep, gone))


def _multiply(tensor: Tensor, keep: Tensor, fill: Tensor | None) -> Tensor:
    """Multiplies (K*B, T, F), or OPT's (K*B*T, F), by (K, F) or (K, 1); 0 times inf is 0.

    What is not kept becomes ``fill`` (F,), if there is one.
    """
    rows = tensor.view(len(keep), -1, tensor.shape[-1])
    kept = keep[:, None].to(tensor.device, torch.bool)
    return rows.where(kept, 0 if fill is None else fill).view_as(tensor)


def _sliced_heads(layer: nn.Module, mask: LayerMask, kept: Tensor) -> list[Part]:
    """The attention projections with the kept kv groups."""
    family, shape = mask.family, mask.shape
    rows = _expand(kept, shape.head_dim)
    queries = _expand(kept, shape.head_dim * shape.query_heads_per_group)
    constant = _constant(layer, mask, family.output, queries)
    return [
        Part(family.key, rows, len(rows)),
        Part(family.value, rows, len(rows)),
        Part(family.query, queries, len(queries)),
        Part(family.output, queries, len(queries), columns=True, constant=constant),
    ]


def _sliced_channels(layer: nn.Module, mask: LayerMask, kept: Tensor) -> list[Part]:
    """The MLP projections with the kept channels, and some that are all zero."""
    down = mask.family.down
    size = aligned(len(kept), layer.get_submodule(down).get_parameter("weight").dtype)
    constant = _constant(layer, mask, down, kept)
    rows = [Part(path, kept, size) for path in mask.family.expand]
    return [*rows, Part(down, kept, size, columns=True, constant=constant)]


def _expand(kept: Tensor, width: int) -> Tensor:
    """Indices of all rows of the kept heads: (h,) -> (h * width,)."""
    return (kept[:, None] * width + torch.arange(width, device=kept.device)).flatten()


def _constant(layer: nn.Module, mask: LayerMask, path: str, kept: Tensor) -> Tensor | None:
    """What a projection gives besides the part of the kept inputs (i,): (D,), or None for nothing.

    Its bias, unless its block is pruned as a whole, and the part of what pruned inputs are.
    """
    projection = layer.get_submodule(path)
    if path in mask.fill:
        fill = mask.fill[path]  # (inputs,)
        return projection(fill.index_fill(0, kept.to(fill.device), 0))
    bias = projection.bias
    if not isinstance(bias, Tensor):
        return None
    return torch.zeros_like(bias) if {"attention", "mlp"} & mask.parts.keys() else bias


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


def _no_attention(
    layer: nn.Module, family: Family, constant: Tensor | None
) -> AbstractContextManager[None]:
    """Makes the attention module return a constant (D,), or zeros, without computing."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        nothing = torch.zeros_like(hidden_states)
        return nothing if constant is None else nothing + constant, None

    return calling(layer.get_submodule(family.attention), forward)
