"""What every mask keeps: of some groups, a number of units at least."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pgprune.budget.pool import Pool
from pgprune.budget.projection import shift
from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits


def best_of_groups(units: PruningUnits, scores: Tensor) -> Tensor | None:
    """Finds the best units of each group, as many as ``units.least``: (n,) -> (n,) bool, or None.

    None says that no group must keep any.
    """
    if not bool(units.least.any()):
        return None
    best = torch.zeros(units.n, dtype=torch.bool)
    for group, least in zip(units.groups, units.least.tolist(), strict=True):
        order = torch.argsort(scores[group.start : group.stop], descending=True, stable=True)
        best[group.start + order[:least]] = True
    return best


def most_shifts(units: PruningUnits, z: Tensor) -> Tensor | None:
    """Computes the shift at which each group is at its least: scores (n,) -> (n,), or None."""
    if not bool(units.least.any()):
        return None
    most = torch.full_like(z, math.inf)
    for group, least in zip(units.groups, units.least.tolist(), strict=True):
        if least:
            here = z[group.start : group.stop]
            base = here.min() - 1  # at which all are kept
            most[group.start : group.stop] = base + shift(here - base, None, least)
    return most


def check_least(units: PruningUnits, pools: Sequence[Pool], cost: Tensor, rate: float) -> None:
    """Refuses a budget that has no room for what every mask keeps.

    Args:
        units: of the model.
        pools: of the budget.
        cost: of each unit in its pool, (n,) int64.
        rate: of the budget.

    Raises:
        PruningError: naming the largest rate.
    """
    least = units.least / units.sizes.clamp(min=1)  # (groups,)
    shares = least[units.group] * cost  # (n,) of what they cost
    needed = [math.ceil(float(shares[pool.members].sum()) - 1e-6) for pool in pools]
    room = [min(pool.capacity, math.floor(pool.share + 1e-9)) for pool in pools]
    if all(need <= has for need, has in zip(needed, room, strict=True)):
        return
    costs = [int(pool.cost.sum()) for pool in pools]
    worst = max(need / cost for need, cost in zip(needed, costs, strict=True))
    most = math.floor(1e4 * (1 - worst)) / 1e4
    if torch.equal(units.least, units.needed):
        what = f"fewer experts in a layer than the {int(units.least.max())} that each token uses"
    else:
        what = "less than --keep-at-least and --keep-layers ask for"
    kinds = len(units.kinds)  # groups come layer by layer, kind by kind
    whole = any((least[k::kinds] == 1).all() for k in range(kinds))
    elsewhere = (
        "keep less of a kind, or choose another --granularity" if whole else "choose scope global"
    )
    remedy = f"choose a rate of at most {most:g}" if most > 0 else elsewhere
    raise PruningError(f"prune rate {rate:.6g} leaves {what}; {remedy}")


def asked_least(
    units: PruningUnits, at_least: Sequence[str] | None, layers: str | None
) -> PruningUnits:
    """Returns the units with what is asked to stay of them.

    Args:
        units: of the model.
        at_least: shares of kinds, such as ``heads=0.5``, that each layer keeps; None for none.
        layers: layers that stay whole, such as ``0,1,-1``; None for none.

    Raises:
        PruningError: a kind or a layer that the model does not have.
    """
    if at_least is None and layers is None:
        return units
    shares = dict(map(share_of_kind, at_least or ()))
    if unknown := shares.keys() - set(units.kinds):
        raise PruningError(
            f"--keep-at-least {unknown.pop()} is no kind of unit of granularity "
            f"{units.granularity}; these are {', '.join(units.kinds)}"
        )
    whole = set()
    for layer in layers_of(layers or ""):
        if not -units.layers <= layer < units.layers:
            raise PruningError(
                f"--keep-layers {layer} is no layer of the model, which has {units.layers}: 0 to "
                f"{units.layers - 1}, or -1 for the last"
            )
        whole.add(layer % units.layers)
    asked = [1.0 if g.layer in whole else shares.get(g.kind, 0.0) for g in units.groups]
    counts = [
        math.ceil(share * size - 1e-9) for share, size in zip(asked, units.sizes, strict=True)
    ]
    return units.keeping(torch.tensor(counts))


def share_of_kind(text: str) -> tuple[str, float]:
    """Reads ``heads=0.5``: a kind of unit and the share that stays.

    Raises:
        PruningError: it is no such text.
    """
    kind, _, share = text.partition("=")
    try:
        value = float(share)
    except ValueError:
        value = -1
    if not kind or not 0 < value <= 1:
        raise PruningError(
            f"--keep-at-least {text!r} is not of the form KIND=SHARE with a share above 0 and at "
            "most 1; write, for example, heads=0.5"
        )
    return kind, value


def layers_of(text: str) -> list[int]:
    """Reads ``0,1,-1``: indices of layers.

    Raises:
        PruningError: it is no such text.
    """
    try:
        return [int(word) for word in text.split(",") if text]
    except ValueError:
        raise PruningError(
            f"--keep-layers {text!r} is no list of layers; write, for example, 0,1,-1"
        ) from None
