"""Proves on a loaded model what the row of its family says, and refuses what cannot be proven.

A unit may be pruned if three models agree: one whose weights that read the unit are zero; the same
with other weights in the unit, which then must not matter; and one that the unit was cut out of. A
layer is compared by itself, in at least float32, on a few tokens.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune.errors import PruningError, first_line
from pgprune.hub_code.fused import count_heads
from pgprune.inspection.configurations import built, values_of_layers
from pgprune.inspection.probe import LayerInputs, layer_inputs, probe_ids, run_layer
from pgprune.models.families import decoder_layers, head_sizes, linear_at
from pgprune.models.family import Family

_CLOSE = {torch.float64: 1e-6, torch.float32: 0.01}
"""Largest difference, as a share of what pruning changes; 0.1 in narrower number formats."""

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
"""What a model raises that is not built as a row says; a PruningError is a ValueError."""

KINDS = ("heads", "values", "channels", "attention", "mlp", "layer")


@torch.no_grad()
def prove(model: PreTrainedModel, family: Family) -> Family:
    """Proves a row on the model that it is for.

    Args:
        model: a loaded causal LM, in evaluation mode; it is not changed.
        family: the row, found or given.

    Returns:
        The row, which refuses the kinds of unit that were not proven, with the reason. It names no
        lists by layer: which ones those are is told by their length (``values_of_layers``).

    Raises:
        PruningError: the model is no causal LM, or nothing was proven.
    """
    _check_causal(model)
    layers = decoder_layers(model, family)
    refused = dict(family.refused)
    calls = layer_inputs(model, layers, probe_ids(model, 2))
    for index, (layer, inputs) in enumerate(zip(layers, calls, strict=True)):
        wide, given = _widened(layer, inputs)
        for kind, check in _CHECKS.items():
            if kind not in refused and (reason := _tried(check, wide, given, family)):
                refused[kind] = f"{reason} (layer {index})"
    if "layer" not in refused and (reason := _tried(_layer, model, family)):
        refused["layer"] = reason
    if "heads" in refused:
        refused.setdefault("values", refused["heads"])
    if set(KINDS) <= set(refused):
        raise PruningError(f"nothing can be pruned, because {refused['channels']}")
    return replace(family, layer_lists=(), sliced=False, fitted=True, refused=refused)


def _check_causal(model: PreTrainedModel) -> None:
    ids = probe_ids(model, 2)
    logits = model(input_ids=ids, use_cache=False).logits  # (B, T, vocabulary)
    changed = ids.clone()
    changed[:, -1] = ids[:, 0]
    earlier = model(input_ids=changed, use_cache=False).logits[:, :-1]
    if not same(earlier, logits[:, :-1], logits):
        raise PruningError("a token changes what comes before it, so it is no causal LM")


def _tried(check: Callable[..., str | None], *arguments: Any) -> str | None:
    """Returns why a check fails, also where the model cannot compute what it asks for."""
    try:
        return check(*arguments)
    except FAILURES as error:
        return f"a layer without some of them fails ({first_line(error)})"


def _channels(layer: nn.Module, inputs: LayerInputs, family: Family) -> str | None:
    down = linear_at(layer, family.down)
    kept, gone = _parted(down.in_features, 1)
    rows = [(path, kept, gone) for path in family.expand]
    return _units(layer, inputs, rows, (family.down, kept, gone))


def _heads(layer: nn.Module, inputs: LayerInputs, family: Family) -> str | None:
    kv_heads, group, size = head_sizes(layer, family)
    if kv_heads < 2:
        return "there is one kv head, which is the whole attention block"
    narrow, wide = _parted(kv_heads, size), _parted(kv_heads, size * group)
    rows = [(family.key, *narrow), (family.value, *narrow), (family.query, *wide)]

    def count(cut: nn.Module) -> None:
        kept = len(narrow[0]) // size
        attention = cut.get_submodule(family.attention)
        count_heads(attention, family.head_counts, kept * group, kept, size)

    return _units(layer, inputs, rows, (family.output, *wide), count)


def _values(layer: nn.Module, inputs: LayerInputs, family: Family) -> str | None:
    """Turns the value dimensions of each head, and the columns that read them, in one basis."""
    kv_heads, group, size = head_sizes(layer, family)
    turned = shell(layer)
    value, output = linear_at(turned, family.value), linear_at(turned, family.output)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator))[0].to(value.weight)
    for name, rows in value.named_parameters():
        heads = rows.unflatten(0, (kv_heads, size)).transpose(1, -1)  # (h, ..., d)
        new = (heads @ basis).transpose(1, -1).reshape(rows.shape)
        setattr(value, name, nn.Parameter(new, False))
    columns = output.weight.unflatten(1, (kv_heads * group, size)) @ basis
    output.weight = nn.Parameter(columns.flatten(1), False)
    dense, without = run_layer(layer, inputs), shell(layer)
    _zero(without, family.output)
    scale = run_layer(without, inputs) - dense
    if not same(run_layer(turned, inputs), dense, scale):
        return "attention is not linear in them"
    return None


def _attention(layer: nn.Module, inputs: LayerInputs, family: Family) -> str | None:
    return _block(layer, inputs, family.output, (family.attention, *family.attention_norms))


def _mlp(layer: nn.Module, inputs: LayerInputs, family: Family) -> str | None:
    return _block(layer, inputs, family.down, (*family.expand, family.down, *family.mlp_norms))


_CHECKS: dict[str, Callable[[nn.Module, LayerInputs, Family], str | None]] = {
    "heads": _heads,
    "values": _values,
    "channels": _channels,
    "attention": _attention,
    "mlp": _mlp,
}


def _layer(model: PreTrainedModel, family: Family) -> str | None:
    """Compares a model that lacks a layer with one whose layer returns what it gets."""
    layers, ids = decoder_layers(model, family), probe_ids(model, 2)
    gone = len(layers) // 2
    kept = [index for index in range(len(layers)) if index != gone]
    if not kept:
        return "there is one layer"

    def pass_on(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

    dense = model(input_ids=ids, use_cache=False).logits
    hook = layers[gone].register_forward_hook(pass_on)
    try:
        expected = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    short = shell(model)
    parent, _, name = family.layers.rpartition(".")
    setattr(short.get_submodule(parent), name, nn.ModuleList(layers[index] for index in kept))
    values = values_of_layers(model.config, kept)
    for key, value in values.items():
        if isinstance(value, list) or value == len(kept):
            setattr(short.config, key, value)
    if _shapes(built(model, values)) != _shapes(short):
        return "its configuration cannot say that a layer is gone"
    if not same(short(input_ids=ids, use_cache=False).logits, expected, expected - dense):
        return "the model without a layer is another than the one whose layer does nothing"
    return None


Part = tuple[str, Tensor, Tensor]
"""A projection, and which of its rows or columns are kept and pruned."""


def _units(
    layer: nn.Module,
    inputs: LayerInputs,
    rows: Sequence[Part],
    columns: Part,
    fit: Callable[[nn.Module], None] | None = None,
) -> str | None:
    """Compares layers whose units are zero, are others, and are cut out; ``fit`` ends the cut."""
    dense = run_layer(layer, inputs)
    reader, kept, gone = columns
    zero = shell(layer)
    weight = linear_at(zero, reader).weight.index_fill(1, gone.to(_device(layer)), 0)
    linear_at(zero, reader).weight = nn.Parameter(weight, False)
    expected = run_layer(zero, inputs)
    if torch.equal(expected, dense):
        return f"what {reader} reads of them makes no difference"
    other, cut = shell(zero), shell(layer)
    for path, few, rest in rows:
        for name, old in linear_at(layer, path).named_parameters():
            here, there = few.to(old.device), rest.to(old.device)
            new = old.index_copy(0, there, old.flip(0).index_select(0, there) + 0.5)
            setattr(linear_at(other, path), name, nn.Parameter(new, False))
            setattr(linear_at(cut, path), name, nn.Parameter(old.index_select(0, here), False))
        linear_at(cut, path).out_features = len(few)
    if not torch.equal(run_layer(other, inputs), expected):
        return f"{', '.join(path for path, *_ in rows)} do more than {reader} reads of them"
    last = linear_at(cut, reader)
    last.weight = nn.Parameter(last.weight.index_select(1, kept.to(_device(layer))), False)
    last.in_features = len(kept)
    if fit is not None:
        fit(cut)
    if not same(run_layer(cut, inputs), expected, expected - dense):
        return "a layer that they are cut out of is another than one where they are zero"
    return None


def _block(layer: nn.Module, inputs: LayerInputs, last: str, parts: Sequence[str]) -> str | None:
    """Compares layers whose block ends in zero, with the block's weights and with others."""
    zero = shell(layer)
    _zero(zero, last)
    expected = run_layer(zero, inputs)
    if torch.equal(expected, run_layer(layer, inputs)):
        return f"the layer does not need {last}"
    other = shell(zero)
    for path in parts:
        for module in other.get_submodule(path).modules():
            for name, old in list(module.named_parameters(recurse=False)):
                if module is not other.get_submodule(last):
                    setattr(module, name, nn.Parameter(old * 1.5 + 0.25, False))
    if not torch.equal(run_layer(other, inputs), expected):
        return f"the rest of the layer needs more of it than {last}"
    return None


def shell(module: nn.Module) -> Any:
    """Copies a module but not its weights, which the copy shares until it is given others."""
    shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def _zero(layer: nn.Module, path: str) -> None:
    linear = linear_at(layer, path)
    for name, old in list(linear.named_parameters()):
        setattr(linear, name, nn.Parameter(torch.zeros_like(old), False))


def _parted(units: int, width: int) -> tuple[Tensor, Tensor]:
    """Divides the rows of units into those that are kept and those, about a third, that are not."""
    rows = torch.arange(units * width)
    gone = rows // width % 3 == 1
    return rows[~gone], rows[gone]


def _device(layer: nn.Module) -> torch.device:
    return next(layer.parameters()).device


def _widened(layer: nn.Module, inputs: LayerInputs) -> tuple[nn.Module, LayerInputs]:
    """Returns a layer and its inputs in at least float32, without gradients."""
    dtype = next(layer.parameters()).dtype
    wide = torch.promote_types(dtype, torch.float32)
    if wide == dtype:
        return layer, inputs

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(wide) if value.is_floating_point() else value
        return tuple(map(of, value)) if isinstance(value, tuple) else value

    named = {name: of(value) for name, value in inputs.kwargs.items()}
    return copy.deepcopy(layer).to(wide), LayerInputs(of(inputs.args), named)


def same(one: Tensor, other: Tensor, scale: Tensor) -> bool:
    """Whether two tensors differ by little, compared with the largest entry of a third."""
    if one.shape != other.shape:
        return False
    error = float((one - other).abs().max())
    return error <= _CLOSE.get(one.dtype, 0.1) * float(scale.abs().max())
