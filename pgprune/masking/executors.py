"""Two ways to run one decoder layer under K masks, with the same result.

``masked`` multiplies by the masks: one batch for all masks, at the cost of dense layers.
``sliced`` computes kept units only: one mask after another, each at the cost of what it keeps.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pgprune.errors import check_choice
from pgprune.hub_code.fused import count_heads
from pgprune.masking.kept_weights import (
    KERNELS,
    KeptWeight,
    Products,
    aligned,
    calling,
    check_kernels,
    gathered,
)
from pgprune.masking.layer_mask import KeptRows, LayerMask
from pgprune.masking.mixtures import mixed
from pgprune.models.families import linear_at
from pgprune.models.family import Family
from pgprune.utils.transfer import send


@dataclass(frozen=True)
class LayerCall:
    """One decoder layer and the arguments it is called with, besides the hidden states.

    Attributes:
        layer: the module.
        args: positional arguments.
        kwargs: the others.
        attention: inputs of the attention output projection for these states, where they are known
            already, (N, T, query heads * head_dim).
    """

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attention: Tensor | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Runs the layer: (N, T, D) -> (N, T, D)."""
        output = self.layer(hidden, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


def run_masked(call: LayerCall, states: Tensor, mask: LayerMask) -> Tensor:
    """Runs a layer under K masks as one batch: states (K, B, T, D) -> (K, B, T, D)."""
    if "layer" in mask.by_kind:
        keep = mask.by_kind["layer"][:, :, None, None].bool().to(states.device)  # (K, 1, 1, 1)
        return torch.where(keep, call(states.flatten(0, 1)).view_as(states), states)
    with multiplied(call.layer, mask), attending(call, mask.family):
        return call(states.flatten(0, 1)).view_as(states)


def run_sliced(
    call: LayerCall, states: Tensor, mask: LayerMask, products: Products = gathered
) -> Tensor:
    """Runs the kept units of a layer under one mask: states (1, B, T, D) -> (1, B, T, D)."""
    (state,) = states
    if "layer" in mask.by_kind:
        return call(state)[None] if mask.by_kind["layer"][0] else states
    layer, rows = call.layer, mask.rows(state.device)
    weights: list[KeptWeight] = []
    attention: AbstractContextManager[None]
    if rows.heads:
        weights += _sliced_heads(layer, mask, rows)
        attention = _head_count(layer, mask, rows.heads)
        if call.attention is not None:
            kept = call.attention.index_select(-1, rows.columns.to(call.attention.device))
            weights = weights[-1:]  # the output projection
            attention = attending(replace(call, attention=kept), mask.family)
        elif rows.values is not None:
            attention = _narrow_values(layer, mask.family, rows, attention)
    elif rows.heads is not None:
        constant = _constant(layer, mask, mask.family.output, rows.columns)
        attention = _no_attention(layer, mask.family, constant)
    else:
        attention = attending(call, mask.family)
    mlp = mixed(layer, mask)
    if rows.channels is not None and mask.family.experts is None:
        weights += _sliced_channels(layer, mask, rows.channels)
    elif rows.channels is not None and "channels" not in mask.by_kind:
        mlp = calling(layer.get_submodule(mask.family.down), torch.zeros_like)
    with attention, mlp, products(weights):
        return call(state)[None]


Multiply = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Multiplies inputs or outputs of a projection by a mask, and fills what is pruned."""


def select(tensor: Tensor, keep: Tensor, fill: Tensor | None) -> Tensor:
    """Multiplies (K*B, T, F), or OPT's (K*B*T, F), by (K, F) or (K, 1); fills with (F,) if given.

    It selects and does not multiply, so that an overflow in a pruned unit, 0 times inf, becomes 0.
    """
    rows = tensor.view(len(keep), -1, tensor.shape[-1])  # (K, B*T, F)
    kept = keep[:, None].to(tensor.device, torch.bool)
    return rows.where(kept, 0 if fill is None else fill).view_as(tensor)


@contextmanager
def multiplied(layer: nn.Module, mask: LayerMask, multiply: Multiply = select) -> Iterator[None]:
    """Multiplies what blocks of a layer get and give by masks, and lets them choose its experts."""
    family = mask.family
    inputs = {family.output: mask.output_columns()}
    if family.experts is None:
        inputs[family.down] = mask.by_kind.get("channels")
    outputs = {family.output: mask.by_kind.get("attention"), family.down: mask.by_kind.get("mlp")}
    hooks = [
        _multiply_inputs(layer.get_submodule(path), keep, mask.fill.get(path), multiply)
        for path, keep in inputs.items()
        if keep is not None
    ] + [
        _multiply_outputs(layer.get_submodule(path), keep, mask.fill.get(path), multiply)
        for path, keep in outputs.items()
        if keep is not None
    ]
    try:
        with mixed(layer, mask):
            yield
    finally:
        for hook in hooks:
            hook.remove()


EXECUTORS: dict[str, Callable[[LayerCall, Tensor, LayerMask], Tensor]] = {
    "masked": run_masked,
    "sliced": run_sliced,
}
"""Every executor by its name."""


def executor_of(
    name: str, kernels: str, device: torch.device
) -> Callable[[LayerCall, Tensor, LayerMask], Tensor]:
    """Returns an executor by its name; a sliced one multiplies with the kernels.

    Raises:
        PruningError: an unknown executor, or kernels that it cannot use on this device.
    """
    check_choice("executor", name, EXECUTORS)
    check_kernels(kernels, name, device)
    return EXECUTORS[name] if name == "masked" else partial(run_sliced, products=KERNELS[kernels])


def _multiply_inputs(
    module: nn.Module, keep: Tensor, fill: Tensor | None, multiply: Multiply
) -> RemovableHandle:
    """Replaces pruned inputs of a projection by their fill; keep is (K, inputs)."""
    return module.register_forward_pre_hook(
        lambda module, args: (multiply(args[0], keep, fill), *args[1:])
    )


def _multiply_outputs(
    module: nn.Module, keep: Tensor, fill: Tensor | None, multiply: Multiply
) -> RemovableHandle:
    """Replaces the outputs of a pruned block by those for its fill; keep is (K, 1)."""
    constant = None if fill is None else module(fill)  # (D,)
    return module.register_forward_hook(
        lambda module, args, output: multiply(output, keep, constant)
    )


def _sliced_heads(layer: nn.Module, mask: LayerMask, rows: KeptRows) -> list[KeptWeight]:
    """Returns the kept weights of the attention projections."""
    family, keys, queries, columns = mask.family, rows.keys, rows.queries, rows.columns
    values = keys if rows.values is None else rows.values.rows
    weights = [
        KeptWeight(linear_at(layer, family.key), keys, len(keys)),
        KeptWeight(linear_at(layer, family.query), queries, len(queries)),
    ]
    return (weights if rows.heads != mask.shape.kv_heads else []) + [
        KeptWeight(linear_at(layer, family.value), values, len(values)),
        _last(layer, mask, family.output, columns, len(columns)),
    ]


def _sliced_channels(layer: nn.Module, mask: LayerMask, kept: Tensor) -> list[KeptWeight]:
    """Returns the kept weights of the MLP projections, with rows of zeros to fill cache lines."""
    family = mask.family
    down = linear_at(layer, family.down)
    size = aligned(len(kept), down.weight.dtype)
    rows = [KeptWeight(linear_at(layer, path), kept, size) for path in family.expand]
    return [*rows, _last(layer, mask, family.down, kept, size)]


def _last(layer: nn.Module, mask: LayerMask, path: str, kept: Tensor, size: int) -> KeptWeight:
    """Returns the kept columns of the projection that ends a block."""
    refitted, constant = mask.refitted(path), _constant(layer, mask, path, kept)
    weight = None if refitted is None else refitted[0]
    return KeptWeight(linear_at(layer, path), kept, size, True, constant, weight)


def _constant(layer: nn.Module, mask: LayerMask, path: str, kept: Tensor) -> Tensor | None:
    """Returns the constant part of a projection's output for kept inputs (i,): (D,) or None.

    It is the bias, unless the block is pruned as a whole, plus what the fill of pruned inputs adds.
    """
    projection = linear_at(layer, path)
    if (refitted := mask.refitted(path)) is not None and refitted[1] is not None:
        return send(refitted[1], projection.weight.device)
    if path in mask.fill:  # W fill + b over the pruned inputs
        fill = mask.fill[path]  # (inputs,)
        return projection(fill.index_fill(0, kept.to(fill.device), 0))
    bias: Tensor | None = projection.bias
    if bias is None:
        return None
    return torch.zeros_like(bias) if {"attention", "mlp"} & mask.by_kind.keys() else bias


def attending(call: LayerCall, family: Family) -> AbstractContextManager[None]:
    """Lets the attention module start at its output projection where the inputs are known."""
    if call.attention is None:
        return nullcontext()
    inputs, output = call.attention, linear_at(call.layer, family.output)

    def forward(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        return output(inputs) if family.alone else (output(inputs), None)

    return calling(call.layer.get_submodule(family.attention), forward)


@contextmanager
def _head_count(layer: nn.Module, mask: LayerMask, kv_heads: int) -> Iterator[None]:
    """Sets the numbers of heads that an attention module reads (OPT) while the body runs."""
    counts, shape = mask.family.head_counts, mask.shape
    attention = layer.get_submodule(mask.family.attention)
    dense = {name: getattr(attention, name) for name in (path.split(".")[0] for path in counts)}
    heads = kv_heads * shape.query_heads_per_group
    count_heads(attention, counts, heads, kv_heads, shape.head_dim)
    try:
        yield
    finally:
        for name, value in dense.items():
            setattr(attention, name, value)


@contextmanager
def _narrow_values(
    layer: nn.Module, family: Family, rows: KeptRows, attention: AbstractContextManager[None]
) -> Iterator[None]:
    """Gives attention zeros for pruned value dimensions, and the output projection kept ones only.

    Attention itself runs at the full width of a head, with any kernel.
    """
    values, width = rows.values, len(rows.keys)
    assert values is not None

    def spread(module: nn.Module, args: tuple[Tensor, ...], kept: Tensor) -> Tensor:
        zeros = kept.new_zeros(*kept.shape[:-1], width)
        return zeros.index_copy_(-1, values.slots.to(kept.device), kept)

    def narrow(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        return args[0].index_select(-1, values.places.to(args[0].device))

    hooks = [
        linear_at(layer, family.value).register_forward_hook(spread),
        linear_at(layer, family.output).register_forward_pre_hook(narrow),
    ]
    try:
        with attention:
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _no_attention(
    layer: nn.Module, family: Family, constant: Tensor | None
) -> AbstractContextManager[None]:
    """Lets the attention module return a constant (D,) or zeros and compute nothing."""

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        output = torch.zeros_like(hidden_states)
        output = output if constant is None else output + constant
        return output if family.alone else (output, None)

    return calling(layer.get_submodule(family.attention), forward)
