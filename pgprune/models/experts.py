"""Mixtures of experts as data, and their stock routers with kept experts only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Routed = tuple[Tensor, Tensor, Tensor]
"""Logits (N, E), weights of the chosen experts (N, k) and their indices (N, k) of N tokens."""


@dataclass(frozen=True)
class Experts:
    """Where the experts of a layer are, and how the configuration names their numbers.

    A layer without the router has an MLP as dense models have it.

    Attributes:
        router: module of which every parameter has a row for each expert, from a layer.
        experts: module of which every parameter has a matrix for each expert, from a layer.
        count: name of the number of experts in the configuration.
        active: name of the number of experts that a token uses.
        dense_layers: name of the list of layers with a plain MLP; None where all have experts.
        step: name of the number of layers from one with experts to the next; None likewise.
        first_dense: name of the number of layers with a plain MLP in front of the others; None
            without one.
        groups: name of the number of groups of which a token uses a few; None without them.
    """

    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    count: str = "num_local_experts"
    active: str = "num_experts_per_tok"
    dense_layers: str | None = None
    step: str | None = None
    first_dense: str | None = None
    groups: str | None = None

    def router_of(self, layer: nn.Module) -> Any:
        """Returns the router of a layer; None where the layer has a plain MLP."""
        parent, _, name = self.router.rpartition(".")
        return getattr(layer.get_submodule(parent), name, None)


def route(router: Any, forward: Callable[[Tensor], Routed], keep: Tensor, states: Tensor) -> Routed:
    """Chooses among kept experts only, for each of K masks on its share of the tokens.

    The stock router runs with the rows of kept experts, so that its softmax, its choice and its
    renormalisation are those of a model without the others.

    Args:
        router: the stock module.
        forward: of the router as it is.
        keep: masks, (K, E).
        states: of all tokens, (K * N, D).

    Returns:
        As the stock router; what a mask prunes has the logit -inf. If fewer experts are kept than
        a token uses, the choice ends in experts of weight 0.
    """
    of_masks = states.reshape(len(keep), -1, states.shape[-1])  # (K, N, D)
    kept = [row.nonzero().flatten() for row in keep.bool()]
    parts = [_route_one(router, forward, *each) for each in zip(kept, of_masks, strict=True)]
    logits, scores, indices = (torch.cat(part) for part in zip(*parts, strict=True))
    return logits, scores, indices


def _route_one(
    router: Any, forward: Callable[[Tensor], Routed], kept: Tensor, states: Tensor
) -> Routed:
    """Chooses among the experts (r,) for tokens (N, D)."""
    used, count = router.top_k, len(router.weight)
    if len(kept) == count:
        return forward(states)
    chosen, rows = min(used, len(kept)), kept.to(states.device)
    logits = states.new_full((len(states), count), -torch.inf)
    if not chosen:
        first = torch.zeros(len(states), used, dtype=torch.int64, device=states.device)
        return logits, states.new_zeros(len(states), used), first
    if len(kept) == 1 and hasattr(router, "num_group"):
        rows = rows.repeat(2)  # it weighs groups by the best two of each
    with _only(router, rows, chosen):
        narrow, scores, places = forward(states)
    padding = 0, used - chosen
    places, scores = (nn.functional.pad(part, padding) for part in (places, scores))
    return logits.to(narrow.dtype).index_copy(1, rows, narrow), scores, rows[places]


@contextmanager
def _only(router: Any, rows: Tensor, chosen: int) -> Iterator[None]:
    """Gives a router some experts (r,) only, of which a token uses ``chosen``."""
    before = router.top_k, router.num_experts, router._parameters, router._buffers
    router.top_k, router.num_experts = chosen, len(rows)
    for name in ("_parameters", "_buffers"):
        kept = {key: part[rows] for key, part in getattr(router, name).items()}
        setattr(router, name, kept)
    try:
        yield
    finally:
        router.top_k, router.num_experts, router._parameters, router._buffers = before
