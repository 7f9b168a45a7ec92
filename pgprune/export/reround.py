"""Rounds what a run has learned once more, to numbers that suit an architecture or a device.

What a run has learned is a probability for each unit, what a method computes is a score; a mask is
one rounding of them. Where the layers must all have the same numbers of heads and channels, or
multiples of N channels, they are rounded again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.budget.problem import PruningConfig
from pgprune.budget.rounding import check_round_to, check_whole_heads
from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits
from pgprune.repair.config import added_parameters
from pgprune.runs.finished import LoadedRun
from pgprune.surgery.architecture import stock_type


def reround(loaded: LoadedRun, uniform: bool, round_to: int) -> LoadedRun:
    """Rounds what a run has learned to a mask of the same prune rate with equal or rounder numbers.

    Args:
        loaded: the run.
        uniform: whether all layers keep equally many heads and equally many channels.
        round_to: what the number of channels that a layer keeps is a multiple of.

    Returns:
        The run itself where its mask is so already; else with the new mask and a note that
        says so. Its results and its repair are still those of the run's own mask.

    Raises:
        PruningError: the units, the prune rate or the architecture allow no such mask; the
            run kept no probabilities.
    """
    units, mask = loaded.units, loaded.mask
    with _advice_on_exports(uniform, round_to):
        check_round_to(units, round_to)
        if uniform:
            check_whole_heads(units)
        # The same budget as in the run, so that as many parameters go.
        if not (fits := _fits(units, mask, uniform, round_to)):
            budget = _budget(loaded, uniform, round_to)
    if not fits:
        mask = budget.round(_scores(loaded, uniform))
    if uniform:
        _check_stock(loaded, mask)
    loaded = replace(loaded, round_to=round_to)
    if torch.equal(mask, loaded.mask):
        return loaded
    note = _note(loaded, mask, uniform, round_to)
    return replace(loaded, mask=mask, notes=(*loaded.notes, note))


@contextmanager
def _advice_on_exports(uniform: bool, round_to: int) -> Iterator[None]:
    """Advises what an export can do; what units and budgets advise are options of a new run."""
    try:
        yield
    except PruningError as error:
        asked = ["--uniform"] * uniform + [f"--round-to {round_to}"] * (round_to != 1)
        reason, _, _ = str(error).partition("; ")
        raise PruningError(
            f"{reason}; export without {' and '.join(asked)}, perhaps with --portable, or prune "
            "again with other options"
        ) from error


def _fits(units: PruningUnits, mask: Tensor, uniform: bool, round_to: int) -> bool:
    """Whether a mask already has the numbers that are asked for."""
    kept = _kept_counts(units, mask)
    channels = kept.get("channels", [])
    if any(count * units.channel_block % round_to for count in channels):
        return False
    # An architecture of equal layers also needs something left of every block.
    if not uniform or units.kinds == ("layer",):  # layers that stay are whole
        return True
    if "attention" in units.kinds:
        return kept["attention"] == kept["mlp"]
    return all(len(set(counts)) == 1 and counts[0] for counts in kept.values())


def _kept_counts(units: PruningUnits, mask: Tensor) -> dict[str, list[int]]:
    """Counts the kept units of each layer that has some, by their kind."""
    groups = [group for group in units.groups if group.stop > group.start]
    return {
        kind: [int(mask[g.start : g.stop].sum()) for g in groups if g.kind == kind]
        for kind in units.kinds
    }


def _budget(loaded: LoadedRun, uniform: bool, round_to: int) -> Budget:
    pruning = loaded.run.config("pruning", PruningConfig)
    # Equal layers need a share for each kind, whatever the run had.
    kind, scope = ("per-kind", "uniform") if uniform else (pruning.budget, pruning.scope)
    asked = replace(pruning, budget=kind, scope=scope, round_to=round_to)
    biases = added_parameters(loaded.model, loaded.repair) > 0
    return asked.budget_of(loaded.model, loaded.units, biases)


def _scores(loaded: LoadedRun, uniform: bool) -> Tensor:
    """Returns what to round again, (n,)."""
    learned = loaded.learned
    # Scores of a method need not compare between layers; uniform masks compare within one only.
    if learned.scores is None or not (learned.probable or uniform):
        other = "" if learned.scores is None else "add --uniform, or "
        raise PruningError(
            f"the run {loaded.run.path} kept no probabilities that could be rounded again; {other}"
            "search once more with --scope uniform or --round-to"
        )
    return learned.scores


def _check_stock(loaded: LoadedRun, mask: Tensor) -> None:
    """Refuses equal layers that no stock architecture holds."""
    units, config = loaded.units, loaded.model.config
    heads = _kept_counts(units, mask).get("heads")
    biases = any(name.endswith(".bias") for name, _ in loaded.model.named_parameters())
    if heads is None or stock_type(config, units, heads[0], biases) is not None:
        return
    kept = heads[0] * units.shapes[0].query_heads_per_group
    raise PruningError(
        f"the family {config.model_type} ties the number of heads to the width, so no stock "
        f"architecture holds {kept} heads at the width {config.hidden_size}; prune with "
        "--granularity channels, or export without --uniform"
    )


def _note(loaded: LoadedRun, mask: Tensor, uniform: bool, round_to: int) -> str:
    """Says that this is not the learned mask."""
    kinds = " and equally many ".join(loaded.units.kinds)
    aims = [f"all layers keep equally many {kinds}"] if uniform else []
    if round_to > 1:
        aims.append(f"every layer keeps a multiple of {round_to} channels")
    units, scores = loaded.units, "probabilities" if loaded.learned.probable else "scores"
    return (
        f"This is not the run's own mask: the {scores} behind that were rounded again so that "
        f"{' and '.join(aims)}, which prunes {units.prune_rate(mask):.2%} instead of "
        f"{units.prune_rate(loaded.mask):.2%}."
    )
