"""Mixtures of experts as data, and their stock modules with kept experts and channels only."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], tuple[Tensor, ...]]
"""Of a router for N tokens (N, D): logits (N, E), weights of the chosen experts (N, k) and their
indices (N, k); of one that is ``scored``, scores (N, E) and logits (N, E)."""

_LINE_BYTES = 16
_SHARED = {"gate_proj.weight": 0, "up_proj.weight": 0, "down_proj.weight": 1}


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
        moe_layers: name of the list of layers with experts; None where it is not told like this.
        scored: whether the router gives all experts a score (N, E), 0 for those that a token does
            not use, and then the logits; each expert gets all tokens, multiplied by its scores.
        inner: parameters of the module of experts that have numbers for each channel of an expert,
            with the dimension of these.
        paired: whether the numbers of a channel are neighbours there, else those of all gates come
            first.
        shared: MLP that every token uses and that the configuration makes as wide as some experts,
            from a layer; None where it has a width of its own.
    """

    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    count: str = "num_local_experts"
    active: str = "num_experts_per_tok"
    dense_layers: str | None = None
    step: str | None = None
    first_dense: str | None = None
    groups: str | None = None
    moe_layers: str | None = None
    scored: bool = False
    inner: Mapping[str, int] = field(default_factory=lambda: {"gate_up_proj": 1, "down_proj": 2})
    paired: bool = False
    shared: str | None = None

    def router_of(self, layer: nn.Module) -> Any:
        """Returns the router of a layer; None where the layer has a plain MLP."""
        parent, _, name = self.router.rpartition(".")
        return getattr(layer.get_submodule(parent), name, None)

    def chosen(self, router: Any, states: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the weights (N, k) and indices (N, k) of the experts of tokens (N, D)."""
        return self.chosen_of(router, router(states))

    def chosen_of(self, router: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Returns weights and indices as ``chosen`` of what the router has given."""
        weights, indices = given[0].topk(router.top_k) if self.scored else given[1:]
        return weights, indices

    def outputs(self, experts: Any, states: Tensor, index: int) -> Tensor:
        """Runs one expert on its inputs: (t, D) -> (t, D)."""
        if not self.scored:
            where = torch.full((len(states), 1), index, device=states.device)
            given: Tensor = experts(states, where, torch.ones_like(states[:, :1]))
            return given
        slots = states.new_zeros(experts.num_experts, *states.shape)  # (E, t, D)
        slots[index] = states
        given = experts(slots.flatten(0, 1)).view_as(slots)[index]
        return given

    def width_of(self, layer: nn.Module) -> int:
        """Returns the number of channels of each expert of a layer."""
        experts = layer.get_submodule(self.experts)
        return min(experts.get_parameter(name).shape[dim] for name, dim in self.inner.items())

    def channel_parts(self, layer: nn.Module) -> Iterator["ChannelPart"]:
        """Yields the parameters of a layer in which every channel has a share."""
        width = self.width_of(layer)
        parts = {f"{self.experts}.{name}": dim for name, dim in self.inner.items()}
        if self.shared is not None:
            parts |= {f"{self.shared}.{name}": dim for name, dim in _SHARED.items()}
        for name, dim in parts.items():
            yield ChannelPart(name, dim, layer.get_parameter(name).shape[dim], width, self.paired)


@dataclass(frozen=True)
class ChannelPart:
    """A parameter in which the channels of a mixture have a share.

    Attributes:
        name: of the parameter, from a layer.
        dim: the dimension along which channels are.
        size: of that dimension, F * m.
        width: number of channels, F.
        paired: whether the numbers of a channel are neighbours.
    """

    name: str
    dim: int
    size: int
    width: int
    paired: bool

    def index(self, channels: Tensor) -> Tensor:
        """Returns where channels (c,) are, in the order of the parameter: (c * m,) on the host."""
        chosen = self._places()[channels.cpu()]  # (c, m)
        return (chosen if self.paired else chosen.T).flatten()

    def of_units(self, values: Tensor) -> Tensor:
        """Adds up numbers along the dimension by channel: (F * m,) -> (F,)."""
        return values[self._places().to(values.device)].sum(1)

    def narrow(self, dense: Tensor, channels: Tensor) -> Tensor:
        """Copies what channels (c,) have of a parameter, and zeros after them."""
        count, line = len(channels), max(1, _LINE_BYTES // dense.element_size())
        width = max(1, -(-count // line)) * line
        filled = nn.functional.pad(channels.cpu(), (0, width - count))
        narrow = dense.index_select(self.dim, self.index(filled).to(dense.device))
        zeros = replace(self, size=narrow.shape[self.dim], width=width)
        index = zeros.index(torch.arange(count, width))
        return narrow.index_fill_(self.dim, index.to(dense.device), 0)

    def _places(self) -> Tensor:
        """Returns where the numbers of each channel are, (F, m)."""
        every = torch.arange(self.size)
        return every.view(self.width, -1) if self.paired else every.view(-1, self.width).T


@contextmanager
def narrowed(layer: nn.Module, experts: Experts, channels: Tensor) -> Iterator[None]:
    """Gives the experts of a layer some channels (c,) only while the body runs.

    Channels of zeros fill rows up to 16 bytes, which grouped products of matrices ask for.
    """
    with ExitStack() as stack:
        for part in experts.channel_parts(layer):
            path, _, name = part.name.rpartition(".")
            owner: Any = layer.get_submodule(path)
            stack.callback(setattr, owner, "_parameters", owner._parameters)
            narrow = part.narrow(owner._parameters[name], channels)
            owner._parameters = {**owner._parameters, name: narrow}
        yield


def route(
    router: Any, forward: Forward, scored: bool, keep: Tensor, states: Tensor
) -> tuple[Tensor, ...]:
    """Chooses among kept experts only, for each of K masks on its share of the tokens.

    The stock router runs with the rows of kept experts, so that its softmax, its choice and its
    renormalisation are those of a model without the others.

    Args:
        router: the stock module.
        forward: of the router as it is.
        scored: as in ``Experts``.
        keep: masks, (K, E).
        states: of all tokens, (K * N, D).

    Returns:
        As the stock router; what a mask prunes has the logit -inf, or the score 0. If fewer experts
        are kept than a token uses, the choice ends in experts of weight 0.
    """
    choose = _score_some if scored else _route_one
    of_masks = states.reshape(len(keep), -1, states.shape[-1])  # (K, N, D)
    kept = [row.nonzero().flatten() for row in keep.bool()]
    parts = [choose(router, forward, *each) for each in zip(kept, of_masks, strict=True)]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _score_some(router: Any, forward: Forward, kept: Tensor, states: Tensor) -> tuple[Tensor, ...]:
    """Computes scores (N, E) and logits (N, E) of tokens (N, D) for the experts (r,)."""
    rows, size = kept.to(states.device), (len(states), len(router.weight))
    whole = states.new_zeros(size), states.new_full(size, -torch.inf)
    if not len(kept):
        return whole
    with _only(router, rows, min(router.top_k, len(kept))):
        narrow = forward(states)
    pairs = zip(whole, narrow, strict=True)
    return tuple(every.to(some.dtype).index_copy(1, rows, some) for every, some in pairs)


def _route_one(router: Any, forward: Forward, kept: Tensor, states: Tensor) -> tuple[Tensor, ...]:
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
        dense = getattr(router, name)
        kept = {key: None if part is None else part[rows] for key, part in dense.items()}
        setattr(router, name, kept)
    try:
        yield
    finally:
        router.top_k, router.num_experts, router._parameters, router._buffers = before
