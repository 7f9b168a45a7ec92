"""The experts of a layer of the pruned model, with what they get and what their output lacks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgprune.masking.expert_downs import down_inputs, down_of, of_downs
from pgprune.masking.layer_mask import LayerMask
from pgprune.masking.mixtures import mixed
from pgprune.masking.units import Group
from pgprune.models.experts import Experts
from pgprune.models.residual import adds_its_output
from pgprune.repair.damping import DAMPINGS
from pgprune.repair.expert_descent import SWEEPS, ExpertDescent, Tokens
from pgprune.repair.projection import Projection, group_of, wide
from pgprune.repair.solution import Solution


@dataclass(frozen=True)
class Mixture(Projection):
    """The kept experts of one layer, whose down projections will be refitted.

    It takes the place of the down projection: its kind is ``channels``, and ``wanted`` is needed.
    """

    @property
    def group(self) -> Group | None:
        """The experts of the layer; None if they are not units of the mask."""
        return group_of(self.lm.units, self.seen.layer, "experts")

    @property
    def pruned(self) -> Solution:
        """Nothing: the router has to leave out pruned experts, and the mask lets it."""
        return {}

    def fit(self, damping: float, sweeps: int = SWEEPS) -> Solution:
        """Finds the down projections with the smallest error, as ``ExpertDescent.fit``.

        Raises:
            PruningError: the activations are not finite, or second moments singular.
        """
        return self._solution(self._descent().fit(damping, sweeps))

    def best_fit(self) -> tuple[float, Solution]:
        """Finds the damping of the smallest error on held-out text, and what it gives.

        It is infinite where dense weights are the best; there is no change then.

        Raises:
            PruningError: the activations are not finite.
        """
        assert isinstance(self.held_out, Mixture)
        descent, held = self._descent(), list(self.held_out.tokens())
        least, best, solution = descent.error({}, held), math.inf, Solution()
        for damping in DAMPINGS:
            fitted = descent.fit(damping)
            error = descent.error(fitted, held)
            if error < least:
                least, best, solution = error, damping, self._solution(fitted)
        return best, solution

    def tokens(self) -> Iterator[Tokens]:
        """Yields the tokens with their routes in the pruned model, chunk by chunk, on the host."""
        for chunk, (inputs, *before) in enumerate(self._seen()):
            (weights, experts), output = self._run(inputs)
            near = None if adds_its_output(self.lm.family, self.kind) else output
            missing = self._missing(chunk, before, near)
            assert missing is not None
            counts = self._token_weights(chunk, inputs, before, near)
            counts = torch.ones_like(missing[..., 0]) if counts is None else counts  # (b, T)
            yield Tokens(
                inputs.flatten(0, 1).cpu(),
                experts.cpu(),
                weights.cpu(),
                (missing - output).flatten(0, 1).cpu(),
                counts.flatten().cpu(),
            )

    def _run(self, inputs: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Runs the MLP on (b, T, D): weights and indices of a token's experts, and the output."""
        layer, given = self.seen.module, list[tuple[Tensor, ...]]()
        router = self._names.router_of(layer)
        hook = router.register_forward_hook(lambda module, args, output: given.append(output))
        try:
            with mixed(layer, self._layer_mask):
                output = layer.get_submodule(self.lm.family.down)(inputs)
        finally:
            hook.remove()
        output = output[0] if isinstance(output, tuple) else output
        return self._names.chosen_of(router, given[0]), wide(output).view(inputs.shape)

    def _descent(self) -> ExpertDescent:
        names, experts, channels = self._names, self._experts, self._channels

        def inputs(expert: int, states: Tensor, weights: Tensor) -> Tensor:
            sent = (part.to(channels.device) for part in (states, weights))
            return down_inputs(names, experts, expert, *sent)[:, channels]

        every = torch.ones(1, self.lm.units.shapes[self.seen.layer].experts)
        keep = self._layer_mask.by_kind.get("experts", every)  # (1, E)
        dense = {
            expert: wide(down_of(names, experts, expert)[:, channels])
            for expert in keep[0].nonzero().flatten().tolist()
        }
        return ExpertDescent(list(self.tokens()), dense, inputs, f"layer {self.seen.layer}")

    def _solution(self, downs: dict[int, Tensor]) -> Solution:
        names, experts, channels = self._names, self._experts, self._channels
        full = {}
        for expert, down in downs.items():
            zeros = torch.zeros_like(down_of(names, experts, expert))
            full[expert] = zeros.index_copy(1, channels, down.to(zeros))
        return {"experts": of_downs(names, experts, full)}

    @property
    def _names(self) -> Experts:
        assert self.lm.family.experts is not None
        return self.lm.family.experts

    @property
    def _experts(self) -> Any:
        return self.seen.module.get_submodule(self._names.experts)

    @property
    def _layer_mask(self) -> LayerMask:
        return LayerMask(self.mask[None], self.lm.units, self.seen.layer, self.lm.family)

    @property
    def _channels(self) -> Tensor:
        """The kept inputs of down projections, (inputs,) int64, with the constant one of a bias."""
        down = down_of(self._names, self._experts, 0)  # (D, F), or (D, F + 1)
        kept = torch.ones(down.shape[1], dtype=torch.bool)
        if (channels := self._layer_mask.by_kind.get("channels")) is not None:
            kept[: channels.shape[1]] = channels[0].cpu().bool()
        return kept.nonzero().flatten().to(down.device)


def tokens_of_fit(windows: Tensor, held_out: Tensor | None) -> int:
    """Counts the tokens that go through experts again to refit them.

    They do so for their routes, for the scale of the damping, in each sweep, and on held-out text
    for the error of each damping.

    Args:
        windows: token ids, (N, T).
        held_out: token ids that choose the damping, (M, T); None for one damping.
    """
    if held_out is None:
        return (2 + SWEEPS) * windows.numel()
    dampings = len(DAMPINGS)
    return (2 + dampings * SWEEPS) * windows.numel() + (1 + dampings) * held_out.numel()
