"""Puts the weights of a finetuned model back into the dense model that its run was pruned from.

So everything that can be written of a run can be written of its finetuned model: what is pruned
stays as it was, and the mask cuts the finetuned weights out again.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.models.families import decoder_layers, family_of
from pgprune.runs.any_model import load_any
from pgprune.runs.finished import LoadedRun
from pgprune.surgery.cuts import layer_cuts
from pgprune.surgery.layers import plan_layers

_NOTE = (
    "After it was pruned and refitted, the model was finetuned; the perplexity of this model is "
    "not among those below."
)


@torch.no_grad()
def with_weights(loaded: LoadedRun, source: str) -> LoadedRun:
    """Returns a run whose kept weights are those of its finetuned model.

    Args:
        loaded: the run; its dense model is changed.
        source: directory of the finetuned model.

    Raises:
        PruningError: the model cannot be loaded, or is not one that was pruned by this run.
    """
    dense, units, mask = loaded.model, loaded.units, loaded.mask
    family = family_of(dense.config)
    if family.fused or loaded.slices is not None:
        raise PruningError(
            f"weights of {source!r} cannot be put back, because layers of the family "
            f"{dense.config.model_type!r} are stored in another form; export the directory of the "
            "finetuned model as it is"
        )
    model = load_any(source, device="cpu", dtype=str(dense.dtype).removeprefix("torch.")).model
    plans, finetuned = plan_layers(units, mask, family), decoder_layers(model, family)
    try:
        for own, plan in zip(finetuned, plans, strict=True):
            layer = decoder_layers(dense, family)[plan.index]
            cuts = layer_cuts(layer, plan, units.shapes[plan.index], family)
            for name, weight in own.named_parameters():
                name = name.replace(".linear.", ".")  # of projections with fewer value dimensions
                parameter: Any = layer.get_parameter(name)
                _put(parameter, list(cuts.get(name, {}).items()), weight)
        for name, weight in model.named_parameters():
            if not name.startswith(f"{family.layers}."):
                dense.get_parameter(name).copy_(weight)
    except (ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise PruningError(
            f"the model {source!r} is not one that the run {loaded.run.path} has pruned, since "
            "their layers differ; give the output of pgprune finetune for this run"
        ) from error
    return replace(loaded, repair=None, notes=(*loaded.notes, _NOTE))


def _put(parameter: Tensor, cuts: list[tuple[int, Tensor]], weight: Tensor) -> None:
    """Puts a weight where its numbers were cut out of a parameter."""
    if not cuts:
        parameter.copy_(weight)
        return
    (dim, index), *rest = cuts
    part = parameter.index_select(dim, index)
    _put(part, rest, weight)
    parameter.index_copy_(dim, index, part)
