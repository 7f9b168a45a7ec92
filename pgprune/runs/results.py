"""Collects what every run reports, whatever has chosen its mask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.data.stream import first_windows
from pgprune.losses.windows import perplexity_of, window_losses
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.perplexity import bos_rule
from pgprune.repair.config import added_parameters
from pgprune.repair.repair import Repair, repaired
from pgprune.runs.versions import versions
from pgprune.utils.progress import track

Table = dict[str, dict[str, float]]
"""Figures by row (dense, initial, masked, ...) and evaluation set."""


@dataclass(frozen=True)
class Perplexities:
    """What was measured of some masks on the same windows.

    Attributes:
        values: perplexities.
        errors: their standard errors over windows.
        windows: number of windows by evaluation set.
    """

    values: Table = field(default_factory=dict)
    errors: Table = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)

    def __or__(self, other: "Perplexities") -> "Perplexities":
        """Returns the rows of both, those of the other where both have them."""
        values, errors = self.values | other.values, self.errors | other.errors
        return Perplexities(values, errors, self.windows | other.windows)

    def shipped_as_masked(self) -> "Perplexities":
        """Adds the row ``pruned``, equal to ``masked``."""
        values, errors = self.values["masked"], self.errors["masked"]
        return self | Perplexities({"pruned": values}, {"pruned": errors})


NOTHING = Perplexities()
"""Nothing was measured yet."""


def perplexities(
    lm: MaskedLM,
    rows: Mapping[str, Tensor],
    windows: Mapping[str, Tensor],
    *,
    until_sure: bool = False,
    known: Perplexities = NOTHING,
) -> Perplexities:
    """Evaluates masks.

    Args:
        lm: the frozen model.
        rows: masks (n,) by the name of their row.
        windows: evaluation windows (N, T) by the name of their set.
        until_sure: whether fewer windows are enough, by the losses of the first row.
        known: rows that were measured before, on as many of the windows as are enough.
    """
    rows = {name: mask for name, mask in rows.items() if name not in known.values}
    if not rows:
        return known
    # All masks in one call: they share the dense prefix of every window.
    compute = partial(lm.losses, torch.stack(list(rows.values())))  # of masks (rows, n)
    until_sure = until_sure and not known.windows
    windows = first_windows(windows, known.windows)
    return known | measured(compute, list(rows), windows, until_sure=until_sure)


def measured(
    compute: Callable[[Tensor], Tensor],
    rows: Sequence[str],
    windows: Mapping[str, Tensor],
    *,
    until_sure: bool = False,
) -> Perplexities:
    """Evaluates whatever computes losses; as ``perplexities``.

    Args:
        compute: takes token ids (B, T) and returns losses (rows, B).
        rows: their names.
        windows: evaluation windows (N, T) by the name of their set.
        until_sure: whether fewer windows are enough, by the losses of the first row.
    """
    found = Perplexities({name: {} for name in rows}, {name: {} for name in rows})
    for text, ids in track(windows.items(), f"perplexity of {', '.join(rows)}", unit="texts"):
        losses = window_losses(compute, ids, until_sure=until_sure, label=text)  # (rows, N)
        found.windows[text] = losses.shape[1]
        for name, row in zip(rows, losses, strict=True):
            found.values[name][text], found.errors[name][text] = perplexity_of(row)
    return found


def with_repair(
    lm: MaskedLM,
    found: Perplexities,
    mask: Tensor,
    repair: Repair | None,
    windows: Mapping[str, Tensor],
) -> Perplexities:
    """Adds the row ``pruned`` to those with the row ``masked``: the mask as it is shipped.

    Args:
        lm: the frozen model.
        found: perplexities; those of the mask alone are taken where there is no repair.
        mask: (n,) of zeros and ones.
        repair: what comes with the mask.
        windows: evaluation windows (N, T) by the name of their set.
    """
    if repair is None:
        return found.shipped_as_masked()
    with repaired(lm, repair):
        return found | perplexities(lm, {"pruned": mask}, windows)


def facts(
    problem: Problem,
    model: str,
    mask: Tensor,
    windows: Mapping[str, Tensor],
    seed: int,
    repair: Repair | None = None,
) -> dict[str, Any]:
    """Collects what was pruned and evaluated, for results.json.

    Args:
        problem: the model, its units and the budget.
        model: its name, as it was asked for.
        mask: the answer, (n,).
        windows: evaluation windows (N, T) by the name of their set.
        seed: of the run.
        repair: what comes with the mask; the biases that it adds are parameters of the answer.
    """
    units, budget, lm = problem.units, problem.budget, problem.lm
    # Zeros in the dense shapes do not count, biases that the repair adds do.
    masked = lm.parameters - units.pruned_parameters(mask)
    added = added_parameters(lm.model, repair)
    targets = [
        {
            "target": bound.target.text,
            "limit": bound.target.limit,
            "reached": bound.value(mask, added),
        }
        for bound in budget.bounds
    ]
    return {
        "model": model,
        "granularity": units.granularity,
        "budget": budget.kind,
        "scope": budget.scope,
        "prune_rate": {"requested": budget.prune_rate, "achieved": units.prune_rate(mask)},
        "parameters": {
            "dense": lm.parameters,
            "prunable": units.prunable,
            "masked": masked,
            "pruned": masked + added,
        },
        **({"targets": targets} if targets else {}),
        "evaluation": {
            "sequence_length": problem.data.sequence_length,
            "bos": bos_rule(problem.tokenizer),
            "windows": {name: len(ids) for name, ids in windows.items()},
        },
        "executor": lm.executor,
        "seed": seed,
        "versions": versions(),
    }
