"""Computes the prune rate that a smaller number of parameters, or less memory, needs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune.analysis.census import Census
from pgprune.budget.bounds import bounds_of, check_bounds, tightest
from pgprune.budget.targets import Target
from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Of the dense model's parameters or memory: what people usually ask for."""


@dataclass(frozen=True)
class Need:
    """What it takes to bring a quantity of the model down.

    Attributes:
        what: ``parameters`` or ``memory``.
        granularity: of the units that are pruned.
        dense: parameters, or bytes of weights and cache, of the dense model.
        least: what is left of them if all that may be pruned is.
        rates: for each of ``SHARES``, the prune rate of every kind; None where it cannot be met.
    """

    what: str
    granularity: str
    dense: int
    least: int
    rates: list[float | None]


def needs(
    found: Census, units: PruningUnits, itemsize: int, tokens: int, shares: Sequence[float] = SHARES
) -> list[Need]:
    """Computes what parameters and memory need, where each kind of unit is pruned by one rate.

    Args:
        found: of the dense model.
        units: that are pruned.
        itemsize: bytes of a number of the weights and the cache.
        tokens: in the cache, of all sequences together.
        shares: of the dense quantity.
    """
    kept = units.least / units.sizes.clamp(min=1)  # (groups,)
    most = 1 - float(kept.max())  # experts that a token uses stay
    costs = {
        "parameters": (found.total, units.cost),
        "memory": (
            found.memory(itemsize, tokens),
            itemsize * (units.cost + tokens * cache_of_units(found, units)),
        ),
    }
    result = []
    for what, (dense, cost) in costs.items():
        prunable = int(cost.sum())
        rates = [(1 - share) * dense / prunable for share in shares]
        met = [rate if rate < 1 and rate <= most else None for rate in rates]
        least = dense - int(most * prunable)
        result.append(Need(what, units.granularity, dense, least, met))
    return result


def needs_of_targets(
    targets: Sequence[Target], model: PreTrainedModel, units: PruningUnits
) -> float | str:
    """Returns the prune rate at which equal shares of everything meet all targets.

    Returns:
        The rate, or a sentence on why there is none.
    """
    try:
        bounds = bounds_of(targets, model, units)
        check_bounds(units, bounds)
    except PruningError as error:
        return str(error)
    return float(tightest(bounds).rate)


def cache_of_units(found: Census, units: PruningUnits) -> Tensor:
    """Returns the numbers in the cache that a token has less without each unit, (n,) int64.

    Only a kv head as a whole takes its keys and values out of the cache.
    """
    cache = torch.zeros(units.n, dtype=torch.int64)
    for group in (group for group in units.groups if group.kind == "heads"):
        cache[group.start : group.stop] = found.cache[group.layer] // (group.stop - group.start)
    return cache
