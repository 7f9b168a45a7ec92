"""Another mask of a finished run: its probabilities rounded once more, to friendlier numbers.

What a run has learned is a probability for each unit, what a method computes is a score; a mask is
one rounding of them. Where the layers must all have the same numbers of heads and channels, or
multiples of N channels, they are rounded again, and the new mask is evaluated on the run's own
evaluation text.
"""

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pgprune.architecture import stock_type
from pgprune.budget import Budget
from pgprune.errors import PruningError
from pgprune.evaluation import perplexity
from pgprune.masked_lm import MaskedLM
from pgprune.models import ModelConfig, choose_device, choose_dtype, move_model
from pgprune.problem import PruningConfig
from pgprune.rounding import check_round_to
from pgprune.run import Run
from pgprune.source import Source
from pgprune.stream import DataConfig, evaluation_windows
from pgprune.units import PruningUnits


def rounded_again(run: Run, source: Source, uniform: bool, round_to: int) -> Source:
    """Rounds what a run has learned to a mask of the same prune rate with friendlier numbers.

    Args:
        run: the run.
        source: what was loaded of it.
        uniform: whether all layers keep equally many heads and equally many channels.
        round_to: what the number of channels that a layer keeps is a multiple of.

    Returns:
        The source itself where its mask is so already; else with the new mask, its figures in the
        results and a note that says so.

    Raises:
        PruningError: the units, the prune rate or the architecture do not allow such a mask; the
            run kept no probabilities; its evaluation text cannot be read.
    """
    units = source.units
    check_round_to(units, round_to)
    mask = source.mask
    if not _is_so(units, mask, uniform, round_to):
        mask = _budget(run, units, uniform, round_to).round(_scores(run, source, uniform))
    if uniform:
        _check_stock(source, mask)
    source = replace(source, round_to=round_to)
    if torch.equal(mask, source.mask):
        return source
    figures = _perplexity(run, source, mask)
    note = _note(source, mask, uniform, round_to, figures)
    results = _results(source, mask, figures)
    return replace(source, mask=mask, results=results, notes=(*source.notes, note))


def _is_so(units: PruningUnits, mask: Tensor, uniform: bool, round_to: int) -> bool:
    """Whether a mask already has the numbers that are asked for."""
    kept = _kept(units, mask)
    channels = kept.get("channels", [])
    if any(count * units.channel_block % round_to for count in channels):
        return False
    if not uniform or units.kinds == ("layer",):  # layers that stay are whole
        return True
    if not {"heads", "channels"}.issuperset(units.kinds):
        return kept["attention"] == kept["mlp"]
    return all(len(set(counts)) == 1 and counts[0] for counts in kept.values())


def _kept(units: PruningUnits, mask: Tensor) -> dict[str, list[int]]:
    """How many units of each kind each layer keeps."""
    return {
        kind: [int(mask[g.start : g.stop].sum()) for g in units.groups if g.kind == kind]
        for kind in units.kinds
    }


def _budget(run: Run, units: PruningUnits, uniform: bool, round_to: int) -> Budget:
    pruning = run.config("pruning", PruningConfig)
    kind, scope = ("per-kind", "uniform") if uniform else (pruning.budget, pruning.scope)
    return Budget(units, pruning.prune_rate, kind, scope, round_to)


def _scores(run: Run, source: Source, uniform: bool) -> Tensor:
    """What to round again; scores of a method need not compare between layers."""
    learned = source.learned
    if learned.scores is None or not (learned.probable or uniform):
        raise PruningError(
            f"the run {run.path} kept no probabilities that could be rounded again; search once "
            "more with --scope uniform or --round-to"
        )
    return learned.scores


def _check_stock(source: Source, mask: Tensor) -> None:
    """Refuses equal layers that no stock architecture holds."""
    units, config = source.units, source.model.config
    heads = _kept(units, mask).get("heads")
    biases = any(name.endswith(".bias") for name, _ in source.model.named_parameters())
    if heads is None or stock_type(config, units, heads[0], biases) is not None:
        return
    kept = heads[0] * units.shapes[0].query_heads_per_group
    raise PruningError(
        f"the family {config.model_type} ties the number of heads to the width, so no stock "
        f"architecture holds {kept} heads at the width {config.hidden_size}; prune with "
        "--granularity channels, or export without --uniform"
    )


def _perplexity(run: Run, source: Source, mask: Tensor) -> dict[str, float]:
    """The new mask's perplexity, measured as the run has measured the learned mask's."""
    config, own = run.config("model", ModelConfig), source.model.dtype
    device = choose_device("cpu" if config.device_map else "auto")
    dtype = choose_dtype(config, device)
    windows = evaluation_windows(run.config("data", DataConfig), source.tokenizer)
    executor = run.sections.get("decided", {}).get("executor", "sliced")
    model = source.model if isinstance(dtype, str) else source.model.to(dtype)  # type: ignore[arg-type]
    lm = MaskedLM(move_model(model, device), source.units, executor)
    figures: dict[str, float] = {}
    for name, ids in windows.items():
        value = perplexity(lm, mask, ids)
        assert isinstance(value, float)
        figures[name] = value
    move_model(source.model.to(own), torch.device("cpu"))  # type: ignore[arg-type]
    return figures


def _results(source: Source, mask: Tensor, figures: dict[str, float]) -> dict[str, Any]:
    """The run's results with this mask as the one that is shipped."""
    results, units = copy.deepcopy(source.results), source.units
    finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    table = results["perplexity"]
    results["perplexity"] = table | {"learned": table["masked"], "masked": finite, "pruned": finite}
    results["prune_rate"]["achieved"] = units.prune_rate(mask)
    dense = results["parameters"]["dense"]
    results["parameters"]["pruned"] = dense - units.pruned_parameters(mask)
    return results


def _note(
    source: Source, mask: Tensor, uniform: bool, round_to: int, figures: dict[str, float]
) -> str:
    """Says that this is not the learned mask, and what that costs."""
    aims = ["all layers keep equally many heads and equally many channels"] if uniform else []
    if round_to > 1:
        aims.append(f"every layer keeps a multiple of {round_to} channels")
    own = source.results["perplexity"]["masked"]
    costs = ", ".join(
        f"{value:.2f} on {name} (the run's own mask: {_number(own.get(name))})"
        for name, value in figures.items()
    )
    units, scores = source.units, "probabilities" if source.learned.probable else "scores"
    return (
        f"This is not the run's own mask: the {scores} behind that were rounded again so that "
        f"{' and '.join(aims)}, which prunes {units.prune_rate(mask):.2%} instead of "
        f"{units.prune_rate(source.mask):.2%}. Perplexity: {costs}."
    )


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2f}"
