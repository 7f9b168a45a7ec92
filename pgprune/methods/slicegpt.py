"""SliceGPT: rotates the residual stream to its principal components and cuts the smallest."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune.budget.problem import Problem
from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.observation import Observation
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.models.families import decoder_layers, family_of
from pgprune.surgery.slice_model import check_sliceable, sliced_parameters
from pgprune.surgery.stream_slices import Slices, centred, project, projection_hooks

_MULTIPLE = 8  # of widths, where the stream is wide or a fraction is asked for
_WIDE = 1024  # below this, steps of 8 dimensions would miss the prune rate by too much


@method("slicegpt", ("heads+channels",), slices=True)
def slicegpt(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Slices the residual stream: prunes no unit, and makes every layer narrower.

    At 2 L points, before attention and before the MLP of each layer, the stream is projected onto
    the leading eigenvectors of its second moments over the calibration tokens, point by point, on
    the outputs of the layers sliced so far. ``slice_fraction`` sets the width, rounded down to a
    multiple of 8; else it is the largest whose model has no more parameters than the prune rate
    leaves: dense parameters minus the rate's share of the prunable ones, as for every other method.
    From 1,024 dimensions on, that width is a multiple of 8 as well; small models would miss the
    rate. The count includes exactly that embeddings are sliced, shortcuts are added, and a tied
    head becomes untied.

    Three of their steps change no output and are left out: rotating the output of the last layer,
    where nothing is cut; rotating the kept directions by a random matrix; and damping the second
    moments, which leaves their eigenvectors. Their code subtracts the mean of embeddings for every
    model, which is right only where norms do so too, as here; and it has one epsilon for all
    models.

    Source: Ashkboos et al. 2024 (microsoft/TransformerCompression).

    Options: ``slice_fraction``.

    Returns:
        A mask that keeps all, and the slices.

    Raises:
        PruningError: no width is narrow enough, the model's layers cannot be sliced, it has no norm
            before its head, or hidden states are not finite.
    """
    lm, units, fraction = problem.lm, problem.units, config.slice_fraction
    model: PreTrainedModel = lm.model  # type: ignore[assignment]
    check_sliceable(model)
    if fraction is not None:
        width = width_of(model, fraction)
    else:
        pruned = round(problem.budget.prune_rate * units.prunable)
        width = width_for(model, lm.parameters - pruned)
    slices = find_slices(lm, windows, width)
    parameters = sliced_parameters(model, width)
    notes = {
        "width": width,
        "slice_fraction": 1 - width / model.config.hidden_size,
        "parameters": parameters,
        "prune_rate": (lm.parameters - parameters) / units.prunable,
    }
    return Pruned(units.ones(), slices=slices, notes=notes)


def width_of(model: PreTrainedModel, fraction: float) -> int:
    """Returns the width that a slice fraction leaves, rounded down to a multiple of 8; 0 keeps all.

    Raises:
        PruningError: nothing is left.
    """
    dense: int = model.config.hidden_size
    width = int((1 - fraction) * dense + 1e-9) // _MULTIPLE * _MULTIPLE
    if width == 0:
        raise PruningError(
            f"slice fraction {fraction} leaves less than {_MULTIPLE} of the {dense} numbers of the "
            f"residual stream; choose at most {1 - _MULTIPLE / dense:.3g}"
        )
    return width if fraction else dense


def width_for(model: PreTrainedModel, parameters: int) -> int:
    """Returns the largest width whose model has at most ``parameters`` parameters.

    It is a multiple of 8 where the dense width is 1,024 or more.

    Raises:
        PruningError: the narrowest has more.
    """
    dense: int = model.config.hidden_size
    step = _MULTIPLE if dense >= _WIDE else 1
    widths = range(step, dense + 1, step)
    fitting = bisect_right(widths, parameters, key=partial(sliced_parameters, model))
    if not fitting:
        raise PruningError(
            f"slicing to the prune rate would have to leave {parameters:,} parameters, but even a "
            f"width of {step} leaves {sliced_parameters(model, step):,}; choose a "
            "smaller prune rate"
        )
    return widths[fitting - 1]


@torch.no_grad()
def find_slices(lm: MaskedLM, windows: Tensor, width: int) -> Slices:
    """Finds the principal directions of the stream, point by point, in the model sliced so far.

    Args:
        lm: the frozen model.
        windows: calibration token ids, (N, T); the hidden states of all are in memory at once.
        width: number of directions to keep at each point.

    Returns:
        The slices, on the CPU.

    Raises:
        PruningError: hidden states are not finite.
    """
    family = family_of(lm.model.config)
    layers = decoder_layers(lm.model, family)
    rotations, hooks = [], []
    try:
        for observation in lm.observe(lm.units.ones(), windows):
            layer = layers[observation.layer]
            path = family.mlp_norms[0]
            norm = layer.get_submodule(path)
            before = (state.to(lm.device) for state in observation.states)
            first = principal(before, norm, width)
            second = principal(_between(observation, layer, path, first), norm, width)
            rotations += [first.cpu(), second.cpu()]
            # The hooks slice this layer, so the observation of the next one sees sliced outputs.
            hooks += projection_hooks(layer, family, first, second)
    finally:
        for hook in hooks:
            hook.remove()
    return Slices(torch.stack(rotations))


def principal(streams: Iterable[Tensor], norm: nn.Module, width: int) -> Tensor:
    """Finds the leading eigenvectors of the second moments X^T X of a stream.

    Args:
        streams: the stream in parts, each (b, T, D) or (b * T, D).
        norm: the norm behind it; if it subtracts the mean, so do the moments, and the direction
            of the mean comes last.
        width: number of eigenvectors.

    Returns:
        (D, width) with orthonormal columns, float32, or float64 for a float64 stream.

    Raises:
        PruningError: the stream is not finite.
    """
    moments = torch.zeros(())
    for stream in streams:
        wide = stream.to(torch.promote_types(stream.dtype, torch.float32)).flatten(0, -2)
        wide = centred(wide, norm)  # (tokens, D)
        moments = moments.to(wide.device) + (wide.T @ wide).double()  # (D, D)
    if not bool(moments.isfinite().all()):
        raise PruningError(
            "hidden states are not finite on the calibration text, so that there is nothing to "
            "slice by; choose another dtype"
        )
    if isinstance(norm, nn.LayerNorm):
        # The vector of ones is an eigenvector with eigenvalue 0. A constant taken from every entry
        # makes that eigenvalue negative, so it comes last, and changes no other.
        moments = moments - moments.trace() / len(moments)
    # eigh sorts ascending
    return torch.linalg.eigh(moments).eigenvectors.flip(1)[:, :width].to(wide.dtype).contiguous()


def _between(
    observation: Observation, layer: nn.Module, path: str, first: Tensor
) -> Iterator[Tensor]:
    """Yields the stream between attention and MLP, the norm at ``path``, with attention sliced."""
    norm = layer.get_submodule(path)
    hook = layer.register_forward_pre_hook(
        lambda module, args: (project(args[0], first, norm), *args[1:])
    )
    try:
        yield from observation.until(path)
    finally:
        hook.remove()
