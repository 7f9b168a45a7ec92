"""The frozen language model under masks: its losses, and what its projections see.

The decoder is driven layer by layer through the model's own modules (see ``stations``), so no
modelling code is copied, and every family works alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from pgprune.errors import PruningError
from pgprune.masking.executors import LayerCall, executor_of
from pgprune.masking.kept_weights import lay_out
from pgprune.masking.layer_driver import Drive, Stations
from pgprune.masking.layer_mask import Fill, LayerMask, prepare
from pgprune.masking.mask_tree import distinct, run_tree
from pgprune.masking.token_meter import TokenMeter
from pgprune.masking.units import PruningUnits
from pgprune.models.families import decoder_layers, family_of, linear_at
from pgprune.models.losses import token_losses
from pgprune.utils.transfer import send

_PASS_TOKENS = 2048  # through the layers at once, so that any number of masks fits in memory
_TREE_TOKENS = 8192  # of masks that run one after another and share what they agree on


@dataclass(frozen=True)
class Observation:
    """What the output and down projections of one dense layer get as input.

    Attributes:
        layer: index of the layer.
        states: hidden states before the layer, one (b, T, D) for each chunk of the sequences, on
            the host, where there is room for those of all the text.
        run: runs the layer as it is now and yields what ``inputs`` describes.
    """

    layer: int
    states: tuple[Tensor, ...]
    run: Callable[[], Iterator[tuple[Tensor, Tensor]]]

    @property
    def inputs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the inputs of the output and down projections, chunk by chunk of the sequences.

        They are (b, T, query heads * head_dim) and (b, T, channels). Asked again, the layer runs
        again: with other weights in its output projection, the MLP gets other inputs.
        """
        return self.run()


class MaskedLM:
    """A frozen causal LM that evaluates masks; the only place that touches its layers.

    Args:
        model: a causal LM of a known family.
        units: the units that the masks are over.
        executor: ``masked`` multiplies the inputs of the output and down projections by the mask
            and runs all K masks as one batch; ``sliced`` computes the kept units only, one mask
            after another. Both give the same losses.
        kernels: how the sliced executor multiplies, ``plain`` or ``triton``.
        compile_head: whether ``torch.compile`` makes one function of head and loss, whose shapes
            are the same for all masks.

    Attributes:
        meter: counts the tokens asked of the model, K * B * T for each call of ``losses``.

    Raises:
        PruningError: an unknown executor, or kernels that it cannot have.
    """

    def __init__(
        self,
        model: nn.Module,
        units: PruningUnits,
        executor: str = "masked",
        kernels: str = "plain",
        compile_head: bool = False,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.units = units
        self.executor = executor
        self._compile_head = compile_head
        self._run = executor_of(executor, kernels, self.device)
        self.meter = TokenMeter()
        self._family = family_of(model.config)
        self._layers = decoder_layers(model, self._family)
        self._stations = Stations(model.get_submodule(self._family.layers.rpartition(".")[0]))
        if executor == "sliced" and {"heads", "channels"} & set(units.kinds):
            lay_out(self._layers, self._family)

    @property
    def device(self) -> torch.device:
        """Where token ids enter the model."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[operator]

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.model.get_input_embeddings().weight.dtype  # type: ignore[operator]

    @property
    def parameters(self) -> int:
        """Parameters of the dense model, tied ones once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @torch.no_grad()
    def losses(self, masks: Tensor, input_ids: Tensor, fill: Fill | None = None) -> Tensor:
        """Mean next-token cross-entropy of each sequence under each mask.

        Args:
            masks: (K, n) of zeros and ones, any dtype and device.
            input_ids: (B, T) int64.
            fill: what pruned inputs are in place of zero, as ``pgprune.fill`` describes.

        Returns:
            (K, B) float32 in nats (float64 for a float64 model), on the model's device.
        """
        return self._in_passes(masks, input_ids, lambda part: self._losses(part, input_ids, fill))

    @torch.no_grad()
    def logits(self, masks: Tensor, input_ids: Tensor) -> Tensor:
        """Next-token logits under each mask, (K, B, T, vocabulary); for small inputs."""
        return self._in_passes(
            masks, input_ids, lambda part: self._head(self._hidden(part, input_ids))
        )

    @torch.no_grad()
    def observe(self, mask: Tensor, input_ids: Tensor) -> Iterator[Observation]:
        """Yields, layer by layer, the inputs of the output and down projections.

        A layer is observed dense, on the outputs of the masked layers before it. Its part of the
        mask is read only after its observation was yielded, so a metric may decide layer by
        layer, writing into ``mask`` as it goes (Wanda-sp does).

        Args:
            mask: (n,), read layer by layer.
            input_ids: (B, T) int64; large B is run in chunks of a few thousand tokens.
        """
        self.meter.add(2 * input_ids.numel())
        states, prepared = [], []
        for chunk_ids in self._chunks(input_ids):
            hidden, every = self._capture(chunk_ids)
            states.append(hidden.cpu())  # (b, T, D)
            prepared.append(every)
        for index in range(self.units.layers):
            calls = [every[index] for every in prepared]
            before = tuple(states)
            yield Observation(index, before, partial(map, self._watch, calls, before))
            layer_mask = LayerMask(mask[None], self.units, index, self._family)
            for chunk, call in enumerate(calls):
                state = send(states[chunk], self.device)[None]
                states[chunk] = self._run(call, state, layer_mask)[0].cpu()

    @torch.no_grad()
    def states(self, input_ids: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields the dense hidden states around each layer, chunk by chunk of the sequences.

        Args:
            input_ids: (B, T) int64.

        Yields:
            The layer, and the states before and after it, (b, T, D) each.
        """
        self.meter.add(input_ids.numel())
        for chunk in self._chunks(input_ids):
            hidden, calls = self._capture(chunk)
            for index, call in enumerate(calls):
                before, hidden = hidden, call(hidden)
                yield index, before, hidden

    @property
    def gated(self) -> bool:
        """Whether MLPs multiply a gate with the outputs of an up projection."""
        return len(self._family.expand) > 1

    def linear(self, layer: int, kind: str) -> nn.Linear:
        """The projection whose inputs are ``heads`` or ``channels``, or the ``up`` projection."""
        return linear_at(self._layers[layer], self._family.projections[kind])

    def projection(self, layer: int, kind: str) -> Tensor:
        """Weight of the projection whose inputs a kind of unit masks: (D, inputs)."""
        return self.linear(layer, kind).weight

    def _chunks(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Sequences that run through the layers together: (b, T) each, on the model's device."""
        return send(input_ids, self.device).split(max(1, _PASS_TOKENS // input_ids.shape[1]))

    def _in_passes(
        self, masks: Tensor, input_ids: Tensor, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Checks and counts masks (K, n) and computes (K, ...) of as many at once as fit."""
        if masks.ndim != 2 or masks.shape[1] != self.units.n:
            raise PruningError(
                f"masks must have shape (K, {self.units.n}), got {tuple(masks.shape)}"
            )
        self.meter.add(len(masks) * input_ids.numel())
        if self.executor == "masked":
            together = max(1, _PASS_TOKENS // input_ids.numel())
            return torch.cat([compute(part) for part in send(masks, self.device).split(together)])
        together = max(1, _TREE_TOKENS // input_ids.numel())
        rows, where = distinct(masks)
        results = [result for part in rows.split(together) for result in compute(part)]
        return torch.stack([results[row] for row in where])

    def _losses(self, masks: Tensor, input_ids: Tensor, fill: Fill | None) -> Tensor:
        """The losses of one pass, (K, B); those of a sliced mask are the same in any company."""
        targets = send(input_ids, self.device)[:, 1:]  # (B, T-1)
        hidden = self._hidden(masks, input_ids, fill)[:, :, :-1]  # (K, B, T-1, D)
        rows = [
            token_losses(self.model, own.flatten(0, 1), targets.flatten(), self._compile_head)
            for own in hidden
        ]
        return torch.stack(rows).view(-1, *targets.shape).mean(dim=2).to(self.device)

    def _hidden(self, masks: Tensor, input_ids: Tensor, fill: Fill | None = None) -> Tensor:
        """Last hidden states after the final norm under the masks of a pass, (K, B, T, D)."""
        run, units, family = self._run, self.units, self._family
        layers = range(units.layers)
        ids = send(input_ids, self.device)

        def drive(hidden: Tensor, calls: list[LayerCall]) -> Tensor:
            if self.executor == "sliced":
                parts = [
                    [LayerMask(mask[None], units, index, family, fill) for index in layers]
                    for mask in masks
                ]
                prepare([part for each in parts for part in each], self.device)
                return torch.cat(run_tree(run, calls, hidden[None], parts)).flatten(0, 1)
            together = hidden.unflatten(0, (len(masks), -1))  # (K, B, T, D)
            for index, call in enumerate(calls):
                together = run(call, together, LayerMask(masks, units, index, family, fill))
            return together.flatten(0, 1)

        if self.executor == "masked":
            ids = ids.repeat(len(masks), 1)  # (K*B, T)
        return self._decode(ids, drive).unflatten(0, (len(masks), -1))

    def _capture(self, input_ids: Tensor) -> tuple[Tensor, list[LayerCall]]:
        """The embeddings (B, T, D) and the calls of all layers, without running any layer."""
        captured: list[tuple[Tensor, list[LayerCall]]] = []

        def keep(hidden: Tensor, calls: list[LayerCall]) -> Tensor:
            captured.append((hidden, calls))
            return hidden

        self._decode(input_ids, keep)
        return captured[0]

    def _decode(self, input_ids: Tensor, drive: Drive) -> Tensor:
        """Runs the base model with ``drive`` in place of its layers; (N, T) -> (N, T, D)."""
        with self._stations.driven(drive):
            output = self.model.base_model(input_ids=input_ids, use_cache=False)  # type: ignore
        return output.last_hidden_state

    def _watch(self, call: LayerCall, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Runs a dense layer and returns the inputs of its output and down projections."""
        seen: dict[str, Tensor] = {}
        hooks = []
        for path in (self._family.output, self._family.down):

            def keep(module: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
                seen[path] = args[0]

            hooks.append(call.layer.get_submodule(path).register_forward_pre_hook(keep))
        try:
            call(send(hidden, self.device))
        finally:
            for hook in hooks:
                hook.remove()
        batch = hidden.shape[:2]  # OPT's MLP sees tokens in one row
        return seen[self._family.output], seen[self._family.down].view(*batch, -1)

    def _head(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)  # type: ignore[operator]
