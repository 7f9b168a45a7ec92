"""Collects what every run reports, whatever has chosen its mask."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.perplexity import bos_rule, perplexity
from pgprune.masking.problem import Problem
from pgprune.repair.config import added_parameters
from pgprune.repair.repair import Repair, repaired
from pgprune.utils.progress import track
from pgprune.utils.versions import versions

Table = dict[str, dict[str, float]]
"""Perplexities by row (dense, initial, masked, ...) and evaluation set."""


def perplexities(lm: MaskedLM, rows: Mapping[str, Tensor], windows: Mapping[str, Tensor]) -> Table:
    """Evaluates masks.

    Args:
        lm: the frozen model.
        rows: masks (n,) by the name of their row.
        windows: evaluation windows (N, T) by the name of their set.
    """
    # All masks in one call: they share the dense prefix of every window.
    masks = torch.stack(list(rows.values()))  # (rows, n)
    table: Table = {name: {} for name in rows}
    for text, ids in track(windows.items(), f"perplexity of {', '.join(rows)}", unit="texts"):
        values = perplexity(lm, masks, ids)
        assert isinstance(values, list)
        for name, value in zip(rows, values, strict=True):
            table[name][text] = value
    return table


def with_repair(
    lm: MaskedLM, table: Table, mask: Tensor, repair: Repair | None, windows: Mapping[str, Tensor]
) -> Table:
    """Adds the row ``pruned`` to a table with the row ``masked``: the mask as it is shipped.

    Args:
        lm: the frozen model.
        table: perplexities; those of the mask alone are taken where there is no repair.
        mask: (n,) of zeros and ones.
        repair: what comes with the mask.
        windows: evaluation windows (N, T) by the name of their set.
    """
    if repair is None:
        return table | {"pruned": table["masked"]}
    with repaired(lm, repair):
        return table | perplexities(lm, {"pruned": mask}, windows)


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
            "pruned": masked + added_parameters(lm.model, repair),
        },
        "evaluation": {
            "sequence_length": problem.data.sequence_length,
            "bos": bos_rule(problem.tokenizer),
            "windows": {name: len(ids) for name, ids in windows.items()},
        },
        "executor": lm.executor,
        "seed": seed,
        "versions": versions(),
    }
