"""Refits the projections of a model layer by layer.

Each projection is solved on the inputs that it gets in the pruned model, whose earlier projections
are refitted already. One projection's problem is in memory at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import repeat

import torch
from torch import Tensor, nn

from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.observation import Observation
from pgprune.models.families import module_at
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.mixture import Mixture
from pgprune.repair.projection import KINDS, Projection, run_linear, wide
from pgprune.repair.solution import Change, Solution
from pgprune.utils.memory import give_back


def refit_layers(
    lm: MaskedLM,
    mask: Tensor,
    windows: Tensor,
    solve: Callable[[Projection], Solution],
    target: str,
    held_out: Tensor | None = None,
    relative: bool = False,
    mixtures: bool = False,
) -> None:
    """Solves for all projections that are not gone, layer by layer.

    A solution stays in the model until the next layer is observed, which therefore gets what the
    refitted layers before it give.

    Args:
        lm: the frozen model; it is dense again at the end.
        mask: (n,), read layer by layer; ``solve`` may write what belongs to its projection.
        windows: calibration token ids, (N, T).
        solve: finds the changes of one projection; the caller keeps what it needs of them.
        target: the wanted output of a projection: ``projection``, its output for the same inputs
            with dense weights; ``stream``, the difference from the hidden states without it to
            those of the dense model.
        held_out: more windows (M, T), which run through the refitted layers for the projections'
            ``held_out``; ``solve`` may compare solutions there, and fits none to them.
        relative: whether the error of a token counts relative to its wanted hidden state.
        mixtures: whether ``solve`` gets a ``Mixture`` for the experts of a layer, which stay as
            they are otherwise.

    Raises:
        PruningError: no calibration text.
    """
    texts = [windows] if held_out is None else [windows, held_out]
    if not all(text.numel() for text in texts):
        raise PruningError("there is no calibration text to refit on; give some windows")
    stream = target == "stream"
    dense = [lm.blocks(text) if stream else repeat(None) for text in texts]
    for text in texts:
        lm.meter.add(text.numel() * (2 if stream else 1))  # MLPs run after the refit of attention

    def changes(kind: str, *seen: Observation) -> list[tuple[str, Change]]:
        # In a function, so that the wanted states are freed before more are computed.
        wanted = [next(states) for states in dense]
        plain = kind in lm.family.projections
        if not plain and not (mixtures and lm.units.shapes[seen[0].layer].experts):
            return []
        made = Projection if plain else Mixture
        first, *rest = (
            made(lm, mask, view, kind, states, relative=relative)
            for view, states in zip(seen, wanted, strict=True)
        )
        projection = replace(first, held_out=rest[0]) if rest else first
        solution = {} if projection.gone else solve(projection)
        return [*projection.pruned.items(), *solution.items()]

    with ExitStack() as refitted:
        # Pruned columns are zeros in what the solutions leave, so no mask has to act on them.
        acting = lm.units.ones() if lm.family.experts is None else mask
        for seen, *held in zip(*(lm.observe(acting, text) for text in texts), strict=True):
            refitted.close()  # observe has run the previous layer with its refitted weights
            give_back()  # states of all the text come and go, and would leave holes in memory
            for kind in KINDS:
                for name, change in changes(kind, seen, *held):
                    names = lm.family.of(seen.module).refitted[name]
                    refitted.enter_context(holding(seen.module, names, *change))


def mean_bias(projection: Projection) -> Solution:
    """Finds the bias b + W mean(x) over pruned x, which adds their mean contribution."""
    linear = projection.linear
    total, tokens = torch.zeros(linear.in_features, dtype=torch.float64), 0
    for inputs, _ in projection.targets():
        total += wide(inputs).sum((0, 1)).cpu()
        tokens += inputs[..., 0].numel()
    pruned = (total / tokens).masked_fill(projection.kept_inputs, 0)
    return {projection.kind: (None, run_linear(linear, pruned.to(linear.weight)))}


def best_weights(projection: Projection, problem: LeastSquares) -> Solution:
    """Finds the weights and the bias with the smallest error for the kept inputs.

    Args:
        projection: whose weights they are.
        problem: of all its inputs, or of the kept ones only.
    """
    if len(problem.gram) < projection.linear.in_features:
        few = problem.refit(problem.everything())
        return of_kept(projection, few, problem.bias(few))
    weight = problem.refit(projection.kept)
    return {projection.kind: (problem.in_place(weight), problem.bias(weight))}


def of_kept(projection: Projection, few: Tensor, bias: Tensor | None) -> Solution:
    """Makes a solution of weights (outputs, kept inputs), with zeros for pruned inputs."""
    kept = projection.kept_inputs.to(few.device)
    weight = few.new_zeros(len(few), len(kept))
    weight[:, kept] = few
    return {projection.kind: (weight, bias)}


def best_in_turns(projection: Projection, damping: float) -> Solution:
    """Finds the weights of the down and up projections of a gated MLP, in turns."""
    up = projection.lm.linear(projection.seen.layer, "up")
    fitted_up, fitted_down, bias = projection.gated_mlp(damping).fit()
    kept = projection.kept_inputs.to(fitted_up.device)
    rows = fitted_up.new_zeros(len(kept), fitted_up.shape[1])
    rows[kept] = fitted_up  # zero for pruned channels
    columns = fitted_down.new_zeros(len(fitted_down), len(kept))
    columns[:, kept] = fitted_down
    up_bias = None if up.bias is None else rows[:, -1]
    return {"up": (rows[:, : up.in_features], up_bias), "channels": (columns, bias)}


@contextmanager
def holding(
    layer: nn.Module, names: tuple[str, str], weight: Tensor | None, bias: Tensor | None
) -> Iterator[None]:
    """Gives a layer another weight and bias while the body runs; None changes nothing.

    Args:
        layer: the decoder layer.
        names: of its weight and bias, from the layer.
        weight: of the shape that the dense one has.
        bias: also where there is no dense one.
    """
    module = module_at(layer, names[0].rpartition(".")[0])
    own, other = (name.rpartition(".")[2] for name in names)
    dense = {name: getattr(module, name) for name in (own, other) if hasattr(module, name)}
    if weight is not None:
        laid_out = torch.empty_like(dense[own]).copy_(weight)  # with the strides of the dense one
        setattr(module, own, nn.Parameter(laid_out, requires_grad=False))
    if bias is not None:
        setattr(module, other, nn.Parameter(bias.to(dense[own]), requires_grad=False))
    try:
        yield
    finally:
        for name, parameter in dense.items():
            setattr(module, name, parameter)
