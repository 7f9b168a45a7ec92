"""Bounds: a target as costs of units, for a model.

The kept units cost at most ``limit - fixed`` together. Costs are whole numbers, so that sums are
exact: parameters, bytes, or picoseconds.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from pgprune.budget.bound import Bound
from pgprune.budget.targets import TIMES, Target
from pgprune.budget.times import Tables, kept_table, time_bound
from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits
from pgprune.models.families import family_of, projection_of


def bounds_of(
    targets: Sequence[Target],
    model: PreTrainedModel,
    units: PruningUnits,
    biases: bool = False,
    tables: Tables = kept_table,
) -> tuple[Bound, ...]:
    """Makes bounds of targets.

    Args:
        targets: what the pruned model must come down to.
        model: the dense model.
        units: of the model.
        biases: whether a repair may add biases, which count as fixed.
        tables: returns the table of times of a target.

    Raises:
        PruningError: the dense model meets all targets; the memory of its cache is unknown; there
            is no table of times of this device.
    """
    bounds = tuple(bound_of(target, model, units, biases, tables) for target in targets)
    if bounds and all(bound.rate <= 0 for bound in bounds):
        met = ", ".join(
            f"{bound.target.text} ({bound.target.said(bound.value(units.ones()))})"
            for bound in bounds
        )
        raise PruningError(f"the dense model meets the target already: {met}; ask for less")
    return bounds


def bound_of(
    target: Target,
    model: PreTrainedModel,
    units: PruningUnits,
    biases: bool = False,
    tables: Tables = kept_table,
) -> Bound:
    """Makes the bound of one target, which the dense model may meet; as ``bounds_of``."""
    if target.quantity in TIMES:
        return time_bound(target, tables(target, model, units), units)
    added = _missing_biases(model, units) if biases else 0
    make = {"parameters": _parameters, "active-parameters": _active, "memory": _memory}
    return make[target.quantity](target, model, units, added)


def tightest(bounds: Sequence[Bound]) -> Bound:
    """Returns the bound that asks for the largest rate, the first of equal ones."""
    return max(bounds, key=lambda bound: bound.rate)


def check_bounds(units: PruningUnits, bounds: Sequence[Bound]) -> None:
    """Checks that every bound leaves something of every kind.

    Raises:
        PruningError: naming the bound and the smallest value that is possible.
    """
    share = (units.least.clamp(min=0) / units.sizes.clamp(min=1))[units.group]  # (n,)
    for bound in bounds:
        kinds = [units.kind == kind for kind in range(len(units.kinds))]
        least = sum(
            max(math.ceil(share[of] @ bound.cost[of].double() - 1e-6), int(bound.cost[of].min()))
            for of in kinds
        )
        if bound.capacity < least:
            raise PruningError(
                f"target {bound.target.text} cannot be met: the smallest that pruning "
                f"{' and '.join(units.kinds)} leads to is {bound.said(bound.fixed + least)}; ask "
                "for more, or choose another granularity"
            )


def _parameters(target: Target, model: PreTrainedModel, units: PruningUnits, added: int) -> Bound:
    total = sum(parameter.numel() for parameter in model.parameters())

    def measure(mask: Tensor, biases: int) -> int:
        return total - units.pruned_parameters(mask) + biases

    fixed = total - units.prunable + added
    return Bound(target, units.cost, fixed, math.floor(target.limit), measure)


def _active(target: Target, model: PreTrainedModel, units: PruningUnits, added: int) -> Bound:
    """Makes the bound of what a token uses: of the experts of a layer, a few."""
    total = sum(parameter.numel() for parameter in model.parameters())
    total -= sum(
        (shape.experts - shape.experts_per_token) * (shape.expert_cost - shape.router_row_cost)
        for shape in units.shapes
    )
    stays = units.cost - units.active_cost  # another expert takes the place of a pruned one

    def measure(mask: Tensor, biases: int) -> int:
        return total - units.pruned_parameters(mask) + int(stays[mask == 0].sum()) + biases

    fixed = total - int(units.active_cost.sum()) + added
    return Bound(target, units.active_cost, fixed, math.floor(target.limit), measure)


def _memory(target: Target, model: PreTrainedModel, units: PruningUnits, added: int) -> Bound:
    """Makes the bound of weights and, for a batch, of the cache of keys and values."""
    size = model.dtype.itemsize
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    cost, fixed = units.cost * size, weights - (units.prunable - added) * size
    count: Callable[[Tensor], int] = lambda mask: 0  # noqa: E731
    if target.batch:
        slots = [2 * size * target.batch * length for length in _cached(target, model)]
        count = partial(_cache_bytes, units, slots)
        cost = cost + _cache_cost(units, slots)
        fixed += count(units.ones()) - int((cost - units.cost * size).sum())

    def measure(mask: Tensor, biases: int) -> int:
        return weights - (units.pruned_parameters(mask) - biases) * size + count(mask)

    return Bound(target, cost, fixed, math.floor(target.limit), measure)


def _cached(target: Target, model: PreTrainedModel) -> list[int]:
    """Returns how many tokens of a text each layer keeps in the cache."""
    family = family_of(model.config)
    if not family.query:
        raise PruningError(
            f"target {target.text!r} counts the cache of keys and values, but the heads of "
            f"{model.config.model_type} are unknown; leave out @{target.batch}x{target.length}"
        )
    longest = getattr(model.config, "max_position_embeddings", None) or target.length
    if target.length > longest:
        raise PruningError(
            f"target {target.text!r} is longer than the context of {longest} tokens; choose a "
            "shorter one"
        )
    # A layer with a sliding window keeps all tokens of it but the newest.
    layers: Any = DynamicCache(config=model.config).layers
    windows = [layer.sliding_window - 1 if layer.is_sliding else longest for layer in layers]
    return [min(target.length, window) for window in windows]


def _cache_cost(units: PruningUnits, slots: Sequence[int]) -> Tensor:
    """Computes the bytes of the cache that go with each unit, (n,) int64.

    Args:
        units: of the model.
        slots: bytes of one dimension of keys and values in each layer.
    """
    cost = torch.zeros(units.n, dtype=torch.int64)
    for group in units.groups:
        shape, slot = units.shapes[group.layer], slots[group.layer]
        whole = shape.kv_heads * shape.head_dim * slot
        if group.kind == "heads":
            # A layer without heads keeps one dimension in the cache, which tells the text's length.
            cost[group.start : group.stop] = (whole - slot) // shape.kv_heads
        elif group.kind == "attention":
            cost[group.start : group.stop] = whole - slot
        elif group.kind == "layer":
            cost[group.start : group.stop] = whole
    return cost


def _cache_bytes(units: PruningUnits, slots: Sequence[int], mask: Tensor) -> int:
    """Counts the bytes of the cache of the model that a mask (n,) keeps."""
    kept = units.kept_counts(mask[None])[0].tolist()  # (groups,)
    dimensions = [shape.kv_heads * shape.head_dim for shape in units.shapes]
    rest = {
        (group.layer, group.kind): count for group, count in zip(units.groups, kept, strict=True)
    }
    for (layer, kind), count in rest.items():
        shape = units.shapes[layer]
        if kind == "heads":
            dimensions[layer] = int(count) * shape.head_dim or 1
        elif kind == "values":
            group = next(g for g in units.groups if (g.layer, g.kind) == (layer, kind))
            heads = (
                mask[group.start : group.stop].view(shape.kv_heads, shape.head_dim).bool().any(1)
            )
            dimensions[layer] = int(heads.sum()) * shape.head_dim or 1
        elif kind == "layer" and not count:
            dimensions[layer] = 0
        elif kind == "attention" and not count:
            dimensions[layer] = int(rest[layer, "mlp"] > 0)
    return sum(slot * count for slot, count in zip(slots, dimensions, strict=True))


def _missing_biases(model: nn.Module, units: PruningUnits) -> int:
    """Counts the parameters of the biases that a repair may add to projections without one."""
    kinds = {group.projection for group in units.groups} & {"heads", "channels"}
    keys = [(layer, kind) for layer in range(units.layers) for kind in kinds]
    found = [each for key in keys if (each := projection_of(model, *key)) is not None]
    return sum(each.out_features for each in found if each.bias is None)
