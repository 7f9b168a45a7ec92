"""One dense layer on the hidden states of a text, run in halves that are computed once.

The first half ends at the inputs of the attention output projection, the second at those of the
down projection. What follows are a product and a sum (and in some families a norm), so a metric or
a repair that has read these inputs has paid for most of the layer already.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pgprune.masking.executors import LayerCall, attending, select
from pgprune.masking.layer_mask import LayerMask
from pgprune.models.family import Family
from pgprune.models.residual import added
from pgprune.utils.transfer import send

KEPT_BYTES = 256 * 2**20
"""Memory for what the halves of a layer give; chunks beyond it are computed again."""


class Halves(NamedTuple):
    """What a layer gives for one chunk of sequences.

    Attributes:
        attention: inputs of the output projection, (b, T, query heads * head_dim).
        output: what attention adds to the stream, (b, T, D); None after the first half.
        mlp: inputs of the down projection, (b, T, channels), or None.
        weights: the parameters that the second half was computed with.
    """

    attention: Tensor
    output: Tensor | None
    mlp: Tensor | None
    weights: tuple[nn.Parameter, ...]


class Observation:
    """The inputs of the output and down projections of one dense layer.

    In a mixture of experts, those of the whole MLP take the place of the down projection's. They
    are computed when they are read, with the weights that the layer has then. A change of the
    output or the expanding projections changes what is read next, and what comes after the layer.

    Args:
        layer: index of the layer.
        states: hidden states before it, one (b, T, D) for each chunk of the sequences.
        calls: of the layer, one for each chunk.
        family: of the model.
        device: where sequences enter the model.

    Attributes:
        layer: index of the layer.
        module: the layer.
        states: hidden states before it, on the host, which has room for those of all the text.
    """

    def __init__(
        self,
        layer: int,
        states: tuple[Tensor, ...],
        calls: Sequence[LayerCall],
        family: Family,
        device: torch.device,
    ) -> None:
        self.layer = layer
        self.module = calls[0].layer
        self.states = states
        self._calls = calls
        self._family = family
        self._device = device
        self._kept: dict[int, Halves] = {}
        self._kept_bytes = 0

    @property
    def inputs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the inputs of the output and down projections, chunk by chunk of the sequences.

        They are (b, T, query heads * head_dim) and (b, T, channels).
        """
        for halves in self.halves():
            assert halves.mlp is not None
            yield halves.attention, halves.mlp

    def attention_inputs(self) -> Iterator[Tensor]:
        """Yields the inputs of the output projection alone; the MLP does not run."""
        for chunk in range(len(self.states)):
            halves = self._kept.get(chunk)
            yield (halves or self._run(chunk, self._family.output)).attention

    def halves(self) -> Iterator[Halves]:
        """Yields all that the layer gives before its down projection, chunk by chunk."""
        for chunk in range(len(self.states)):
            halves = self._kept.get(chunk)
            if halves is None or halves.mlp is None or not self._is_present(halves):
                halves = self._run(chunk, self._family.down)
            yield halves

    def until(self, path: str) -> Iterator[Tensor]:
        """Runs the layer up to a module of it and yields the module's input, chunk by chunk.

        Nothing is kept, so hooks may change what the layer computes beyond known attention inputs.
        """
        for chunk in range(len(self.states)):
            call = self._call_of(chunk)
            seen: list[Tensor] = []

            def reached(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                seen.append(args[0])  # noqa: B023 (the hook is gone when the loop goes on)
                raise _Reached

            self._call(chunk, call, [call.layer.get_submodule(path)], [reached])
            yield seen[0]

    def after(
        self, mask: LayerMask, run: Callable[[LayerCall, Tensor, LayerMask], Tensor]
    ) -> Iterator[Tensor]:
        """Yields the hidden states after the layer under a mask, chunk by chunk, on the host.

        What was computed for ``inputs`` is used where the mask allows it, and freed.

        Args:
            mask: one mask's part in this layer.
            run: the executor, for what has to be computed.
        """
        partial = {kind: keep for kind, keep in mask.by_kind.items() if not bool(keep.all())}
        channels = None if self._family.experts else partial.pop("channels", None)
        for chunk, call in enumerate(self._calls):
            state = send(self.states[chunk], self._device)
            halves = self._kept.pop(chunk, None)
            known = halves and halves.mlp is not None and self._is_present(halves)
            if halves and known and not partial and not self._family.rest:
                down = call.layer.get_submodule(self._family.down)
                assert halves.mlp is not None and halves.output is not None
                mlp = halves.mlp if channels is None else select(halves.mlp, channels, None)
                mlp = added(call.layer, self._family, "channels", down(mlp))
                before = state.to(halves.output.device)
                after = before + halves.output + mlp.view_as(before)  # as the layer
            else:
                call = replace(call, attention=halves.attention if halves else None)
                after = run(call, state[None], mask)[0]
            yield after.cpu()

    def _run(self, chunk: int, path: str) -> Halves:
        """Runs the layer up to its output or its down projection, from what is known of it."""
        family, call = self._family, self._call_of(chunk)
        output, down = (call.layer.get_submodule(p) for p in (family.output, family.down))
        seen: dict[str, Tensor] = {}

        def keep_attention(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen["attention"] = args[0]
            if path == family.output:
                raise _Reached

        def keep_mlp(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen["mlp"] = args[0]
            raise _Reached

        def keep_output(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
            seen["output"] = result

        hook = output.register_forward_hook(keep_output)
        try:
            self._call(chunk, call, [output, down], [keep_attention, keep_mlp])
        finally:
            hook.remove()
        batch = self.states[chunk].shape[:2]  # OPT flattens (b, T) before its MLP
        parts = {name: part.view(*batch, -1) for name, part in seen.items()}
        if "output" in parts:
            parts["output"] = added(call.layer, family, "heads", parts["output"])
        halves = Halves(
            parts["attention"], parts.get("output"), parts.get("mlp"), self._weights(call)
        )
        self._keep(chunk, halves)
        return halves

    def _call_of(self, chunk: int) -> LayerCall:
        """Returns the call for a chunk, with the attention inputs where they are known."""
        known = self._kept.get(chunk)
        return replace(self._calls[chunk], attention=known.attention if known else None)

    def _call(
        self,
        chunk: int,
        call: LayerCall,
        modules: Sequence[nn.Module],
        before: Sequence[Callable[[nn.Module, tuple[Tensor, ...]], None]],
    ) -> None:
        """Calls the layer on a chunk with hooks on the inputs of modules, one of which ends it."""
        pairs = zip(modules, before, strict=True)
        hooks = [module.register_forward_pre_hook(hook) for module, hook in pairs]
        try:
            with suppress(_Reached), attending(call, self._family):
                call(send(self.states[chunk], self._device))
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, chunk: int, halves: Halves) -> None:
        """Keeps what was computed, as long as there is room."""
        self._kept_bytes -= _bytes(self._kept.pop(chunk, None))
        if self._kept_bytes + _bytes(halves) <= KEPT_BYTES:
            self._kept[chunk] = halves
            self._kept_bytes += _bytes(halves)

    def _weights(self, call: LayerCall) -> tuple[nn.Parameter, ...]:
        """Returns the present parameters that the second half depends on and that may change."""
        paths = (self._family.output, *self._family.expand)
        return tuple(p for path in paths for p in call.layer.get_submodule(path).parameters())

    def _is_present(self, halves: Halves) -> bool:
        """Tells if the layer has the parameters that something was computed with."""
        present = self._weights(self._calls[0])
        return len(present) == len(halves.weights) and all(map(_is, present, halves.weights))


class _Reached(Exception):
    """Ends the run of a layer at a module whose input is known by then."""


def _is(one: object, other: object) -> bool:
    return one is other


def _bytes(halves: Halves | None) -> int:
    parts = () if halves is None else (halves.attention, halves.output, halves.mlp)
    return sum(part.nbytes for part in parts if part is not None)
