"""A projection of the pruned model with its inputs there and its targets."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.observation import Observation
from pgprune.masking.units import Group, PruningUnits
from pgprune.models.residual import added, adds_its_output, slope, wanted_output
from pgprune.repair.gated_mlp import GatedMLP, Tokens, giving_ones
from pgprune.repair.least_squares import LeastSquares, SecondMoments
from pgprune.repair.solution import Solution

KINDS = ("heads", "channels")
"""Projections by the kind of unit in their inputs, in the order in which a layer runs them."""

BLOCKS = {"heads": "attention", "channels": "mlp"}
"""The block whose last projection it is, by kind."""


class KeptMoments(NamedTuple):
    """Second moments of what a projection keeps.

    Attributes:
        moments: of the kept inputs and the targets.
        weight: the dense weights of the kept inputs, (outputs, kept inputs).
        energy: sum of |x|^2 over tokens, with pruned inputs; of x - mean x where there is a bias.
    """

    moments: SecondMoments
    weight: Tensor
    energy: float


@dataclass(frozen=True)
class Projection:
    """A projection of the pruned model that will be refitted.

    Attributes:
        lm: the model.
        mask: (n,), decided up to this projection.
        seen: the layer in the pruned model.
        kind: ``heads`` for the attention output projection, ``channels`` for the down projection.
        wanted: the dense model's hidden states after the block, one (b, T, D) for each chunk;
            None if the target is the projection's own output with dense weights.
        held_out: the same projection on text that no solution is fitted to; None without any.
        relative: whether the error of a token counts relative to its hidden state.
    """

    lm: MaskedLM
    mask: Tensor
    seen: Observation
    kind: str
    wanted: Sequence[Tensor] | None
    held_out: "Projection | None" = None
    relative: bool = False

    @property
    def linear(self) -> nn.Linear:
        """The module, with dense weights."""
        return self.lm.linear(self.seen.layer, self.kind)

    @property
    def group(self) -> Group | None:
        """The units in its inputs; None if they are not units of the mask."""
        return group_of(self.lm.units, self.seen.layer, self.kind)

    @property
    def kept(self) -> Tensor:
        """The kept units, (units,) bool; a single kept one if it has no group."""
        if self.group is None:
            return torch.ones(1, dtype=torch.bool)
        return self.mask[self.group.start : self.group.stop].cpu().bool()

    @property
    def kept_inputs(self) -> Tensor:
        """The kept inputs, (inputs,) bool."""
        kept = self.kept.repeat_interleave(self.linear.in_features // len(self.kept))
        order = self._order
        return kept if order is None else torch.empty_like(kept).index_copy_(0, order, kept)

    @property
    def _order(self) -> Tensor | None:
        return None if self.group is None else self.lm.units.input_order(self.group)

    @property
    def gone(self) -> bool:
        """Whether the mask prunes its whole block."""
        for whole in (BLOCKS[self.kind], "layer"):
            group = group_of(self.lm.units, self.seen.layer, whole)
            if group is not None and not self.mask[group.start]:
                return True
        return False

    @property
    def intact(self) -> bool:
        """Whether nothing is pruned up to here; then hidden states equal the dense model's."""
        layers = self.lm.units.layer
        before = layers < self.seen.layer if self.kind == "heads" else layers <= self.seen.layer
        return bool(self.kept.all() and self.mask[before].all())

    @property
    def pruned(self) -> Solution:
        """The parameters after pruning: kept columns, or zeros if the block is pruned."""
        weight, bias = self.linear.weight, self.linear.bias
        if self.gone:
            nothing = None if bias is None else torch.zeros_like(bias)
            return {self.kind: (torch.zeros_like(weight), nothing)}
        return {self.kind: (weight.where(self.kept_inputs.to(weight.device), 0), None)}

    def targets(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yields its inputs, (b, T, inputs), and the wanted outputs for them, chunk by chunk.

        These are (b, T, D), or None if they are the projection's own.
        """
        for chunk, (inputs, *before) in enumerate(self._seen()):
            yield inputs, self._missing(chunk, before, self._dense_output(inputs))

    def _missing(
        self, chunk: int, before: Sequence[Tensor], output: Tensor | None
    ) -> Tensor | None:
        """Computes the output that gives the wanted states with those before it, (b, T, D)."""
        if self.wanted is None:
            return None
        missing = self.wanted[chunk].to(before[0].device)
        for part in before:
            missing = missing - part
        if output is None:
            return missing
        return wanted_output(self.seen.module, self.lm.family, self.kind, missing, output)

    def _weighted(self) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Yields inputs and targets as ``targets``, and how much each token counts, (b, T)."""
        for chunk, (inputs, *before) in enumerate(self._seen()):
            output = self._dense_output(inputs)
            weights = self._token_weights(chunk, inputs, before, output)
            yield inputs, self._missing(chunk, before, output), weights

    def _dense_output(self, inputs: Tensor) -> Tensor | None:
        """Computes its dense output, (b, T, D), where the block does not add it as it is."""
        adds = adds_its_output(self.lm.family, self.kind)
        return None if adds else run_linear(self.linear, inputs)

    def _token_weights(
        self, chunk: int, inputs: Tensor, before: Sequence[Tensor], output: Tensor | None
    ) -> Tensor | None:
        """Computes how much each token counts, (b, T); None if all count once.

        Errors count as they are in the stream, of which the output may be a steep function.
        """
        weights = self._relative_weights(chunk, inputs, before) if self.relative else None
        if output is None:
            return weights
        steepness = slope(self.seen.module, self.lm.family, self.kind, output)[..., 0]
        return steepness.square() * (1 if weights is None else weights)

    def _relative_weights(self, chunk: int, inputs: Tensor, before: Sequence[Tensor]) -> Tensor:
        """Computes one over the mean square of the wanted states after the block, (b, T).

        The next norm divides by its root, so an error of the same size matters less to a token with
        large states. The first tokens of a text often have states a thousand times as large as
        the others (Sun et al. 2024, Massive Activations, arXiv 2402.17762).
        """
        if self.wanted is None:
            output = run_linear(self.linear, inputs)
            after = sum(before, added(self.seen.module, self.lm.family, self.kind, output))
        else:
            after = self.wanted[chunk]
        return after.square().mean(-1).clamp(min=torch.finfo(after.dtype).tiny).reciprocal()

    def _seen(self) -> Iterator[tuple[Tensor, ...]]:
        """Yields its inputs, (b, T, inputs), and what adds up to the states before its block."""
        if self.kind == "heads":
            for chunk, inputs in enumerate(self.seen.attention_inputs()):
                yield inputs, wide(self.seen.states[chunk]).to(inputs.device)
            return
        for chunk, halves in enumerate(self.seen.halves()):
            assert halves.mlp is not None and halves.output is not None
            # By now attention's output projection is refitted.
            state = wide(self.seen.states[chunk]).to(halves.output.device)
            yield halves.mlp, state, halves.output

    def least_squares(self, damping: float) -> LeastSquares:
        """Builds the problem of its weights, and of its bias if it has one."""
        linear, moments = self.linear, SecondMoments.of(self.linear.weight)
        for inputs, targets, weights in self._weighted():
            moments.add(inputs, targets, weights)
        if self.wanted is None:
            moments.set_outputs(linear.weight, linear.bias)
        return self._problem(moments, linear.weight, damping=damping, order=self._order)

    def least_squares_of_kept(self, damping: float) -> LeastSquares:
        """Builds the problem of the weights of its kept inputs, damped as that of all inputs.

        ``wanted`` must be there.
        """
        return next(self.dampings_of_kept([damping]))

    def dampings_of_kept(self, dampings: Iterable[float]) -> Iterator[LeastSquares]:
        """Yields the problem of its kept inputs under each damping; tokens are read once."""
        kept, inputs = self.kept_moments(), self.linear.in_features
        for damping in dampings:
            ridge = damping * kept.energy / inputs or float(damping > 0)
            yield self._problem(kept.moments, kept.weight, ridge=ridge)

    def kept_moments(self) -> KeptMoments:
        """Adds up the second moments of its kept inputs and of its targets."""
        weight, kept = self.linear.weight, self.kept_inputs
        here, gone = (part.nonzero().flatten().to(weight.device) for part in (kept, ~kept))
        kept_weight = weight.t().index_select(0, here).t()  # as they may lie in memory
        moments = SecondMoments.of(kept_weight)
        sums, squares = torch.zeros(2, len(gone), dtype=torch.float64, device=moments.lower.device)
        for inputs, targets, weights in self._weighted():
            rows = wide(inputs).flatten(0, -2)  # (tokens, inputs)
            moments.add(_columns(rows, here), targets, weights)
            others = _columns(rows, gone).to(sums.device)
            count = 1.0 if weights is None else weights.flatten()[:, None].to(others)
            sums += (count * others).sum(0)
            squares += (count * others.square()).sum(0)
        total = moments.lower.diagonal().sum() + squares.sum()  # sum of |x|^2, pruned inputs too
        if self.linear.bias is not None:  # sum of |x - m|^2
            total -= (moments.inputs.square().sum() + sums.square().sum()) / moments.tokens
        return KeptMoments(moments, kept_weight, float(total))

    def _problem(self, moments: SecondMoments, weight: Tensor, **options: Any) -> LeastSquares:
        return LeastSquares(
            moments,
            weight,
            width=self.linear.in_features // len(self.kept),
            biased=self.linear.bias is not None,
            name=f"the {BLOCKS[self.kind]} output of layer {self.seen.layer}",
            **options,
        )

    def gated_mlp(self, damping: float) -> GatedMLP:
        """Builds the problem of the weights of down and up projection, for kept channels."""
        up = self.lm.linear(self.seen.layer, "up")
        kept = self.kept_inputs.to(up.weight.device)
        targets = [
            run_linear(self.linear, channels) if wanted is None else wanted
            for channels, wanted in self.targets()
        ]
        tokens = []
        with giving_ones(up) as up_inputs:  # g * 1 = g: the down projection gets the gates
            family = self.lm.family
            for target, gates in zip(targets, self.seen.until(family.down), strict=True):
                inputs = wide(up_inputs.pop()).flatten(0, -2)
                if up.bias is not None:  # a constant input, whose weight is the bias
                    inputs = F.pad(inputs, (0, 1), value=1.0)
                kept_gates = wide(gates[..., kept]).flatten(0, -2)
                tokens.append(Tokens(inputs, kept_gates, target.flatten(0, -2)))
        weight = wide(up.weight)
        if up.bias is not None:
            weight = torch.cat([weight, wide(up.bias)[:, None]], dim=1)
        return GatedMLP(
            tokens,
            weight[kept],
            wide(self.linear.weight)[:, kept],
            damping,
            biased=self.linear.bias is not None,
            name=f"the mlp of layer {self.seen.layer}",
        )


def wide(tensor: Tensor) -> Tensor:
    """Converts a tensor to at least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _columns(rows: Tensor, index: Tensor) -> Tensor:
    """Copies columns of (tokens, inputs), twice as fast on a CPU as ``index_select`` does."""
    return rows.gather(1, index.to(rows.device).expand(len(rows), -1))


def run_linear(linear: nn.Linear, inputs: Tensor) -> Tensor:
    """Computes a projection in at least float32: (..., inputs) -> (..., D)."""
    bias = None if linear.bias is None else wide(linear.bias)
    return F.linear(wide(inputs), wide(linear.weight), bias)


def group_of(units: PruningUnits, layer: int, kind: str) -> Group | None:
    """Returns the group of a layer's units in a projection or block, or None without such units."""
    groups = (group for group in units.groups if (group.layer, group.projection) == (layer, kind))
    return next(groups, None)
