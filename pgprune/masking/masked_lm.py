"""The frozen language model under masks: its losses, and the inputs of its projections.

The layers run one by one through the model's own modules (see ``layer_driver``), so no modelling
code is copied and all families share this code.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from pgprune.data.token_meter import TokenMeter
from pgprune.errors import PruningError
from pgprune.inspection.base_model import base_model
from pgprune.losses.divergence import Predictions, divergences, predictions
from pgprune.losses.tokens import LogitsMemory, logits_of, token_losses
from pgprune.masking.executors import LayerCall, executor_of, run_sliced
from pgprune.masking.kept_weights import lay_out
from pgprune.masking.layer_driver import LayerDriver, RunLayers
from pgprune.masking.layer_mask import Fill, LayerMask, Refit, prepare
from pgprune.masking.mask_tree import distinct, run_tree
from pgprune.masking.observation import Observation
from pgprune.masking.units import PruningUnits
from pgprune.models.families import decoder_layers, family_of, linear_at
from pgprune.models.residual import additions
from pgprune.utils.progress import track
from pgprune.utils.transfer import send

_TREE_TOKENS = 8192  # a pass of masks that run one after another and share common layers


class MaskedLM:
    """A frozen causal LM that evaluates masks. Only this class touches its layers.

    Args:
        model: a causal LM of a known family.
        units: the units that the masks are over.
        executor: ``masked`` multiplies the inputs of the output and down projections by the mask
            and runs all K masks as one batch; ``sliced`` computes the kept units only, one mask
            after another. Both give the same losses.
        kernels: how the sliced executor multiplies, ``plain`` or ``triton`` (experimental).
        compile_head: whether ``torch.compile`` fuses head and loss (experimental).
        pass_tokens: run through the layers together; memory does not grow with the masks.

    Attributes:
        family: where the model's projections are.
        meter: counts the tokens asked of the model, K * B * T for each call of ``losses``.

    Raises:
        PruningError: an unknown executor, or kernels that it cannot use.
    """

    def __init__(
        self,
        model: nn.Module,
        units: PruningUnits,
        executor: str = "masked",
        kernels: str = "plain",
        compile_head: bool = False,
        *,
        pass_tokens: int = 2048,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.units = units
        self.executor = executor
        self.pass_tokens = pass_tokens
        self._compile_head = compile_head
        self._logits_memory = LogitsMemory()
        self._refit: Refit | None = None
        self._run = executor_of(executor, kernels, self.device)
        self.meter = TokenMeter()
        self.family = family_of(model.config)
        self._layers = decoder_layers(model, self.family)
        self._families = [self.family.of(layer) for layer in self._layers]
        decoder, _, name = self.family.layers.rpartition(".")
        self._driver = LayerDriver(model.get_submodule(decoder), name, self.family.tuples)
        if executor == "sliced" and {"heads", "values", "channels"} & set(units.kinds):
            lay_out(self._layers, self.family)

    @property
    def device(self) -> torch.device:
        """Device of the embeddings, where token ids enter the model."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[operator]

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.model.get_input_embeddings().weight.dtype  # type: ignore[operator]

    @property
    def parameters(self) -> int:
        """Number of parameters of the dense model; tied ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @contextmanager
    def refitted(self, refit: Refit) -> Iterator[None]:
        """Gives masks other weights for what they keep; they run one after another, sliced."""
        self._refit = refit
        try:
            yield
        finally:
            self._refit = None

    @torch.no_grad()
    def losses(self, masks: Tensor, input_ids: Tensor, fill: Fill | None = None) -> Tensor:
        """Mean next-token cross-entropy of each sequence under each mask.

        Args:
            masks: (K, n) of zeros and ones, any dtype and device.
            input_ids: (B, T) int64.
            fill: values of pruned inputs in place of zero.

        Returns:
            (K, B) float32 in nats (float64 for a float64 model), on the model's device.
        """
        targets = send(input_ids, self.device)[:, 1:].flatten()  # (B*(T-1),)
        compute = partial(token_losses, self.model, targets=targets, compiled=self._compile_head)
        return self._means(masks, input_ids, fill, compute)

    @torch.no_grad()
    def divergences(
        self, masks: Tensor, input_ids: Tensor, dense: Predictions, fill: Fill | None = None
    ) -> Tensor:
        """Mean KL divergence from the ``dense_predictions`` of a batch; else as ``losses``."""
        compute = partial(divergences, self.model, dense=dense)
        return self._means(masks, input_ids, fill, compute)

    @torch.no_grad()
    def dense_predictions(self, input_ids: Tensor, top: int) -> Predictions:
        """Keeps the ``top`` most likely next tokens of the dense model, at B*(T-1) places."""
        dense = self.units.ones()[None]
        (hidden,) = self._in_passes(dense, input_ids, lambda few: self._hidden(few, input_ids))
        states = hidden[:, :-1].flatten(0, 1)  # (B*(T-1), D)
        return predictions(self.model, states, top, memory=self._logits_memory)

    @torch.no_grad()
    def logits(self, masks: Tensor, input_ids: Tensor) -> Tensor:
        """Computes next-token logits under each mask, (K, B, T, vocabulary), for small inputs."""
        of = partial(logits_of, self.model)
        return self._in_passes(masks, input_ids, lambda few: of(self._hidden(few, input_ids)))

    @torch.no_grad()
    def observe(self, mask: Tensor, input_ids: Tensor) -> Iterator[Observation]:
        """Yields, layer by layer, the inputs of the output and down projections.

        A layer is observed dense, on the outputs of the masked layers before it. The mask of a
        layer is read after its observation was yielded, so a metric may decide layer by layer and
        write into ``mask`` between two observations, as Wanda-sp does.

        Args:
            mask: (n,), read layer by layer.
            input_ids: (B, T) int64; large B is run in chunks of a few thousand tokens.
        """
        self.meter.add(2 * input_ids.numel())
        states, prepared = [], []
        for chunk_ids in self._chunks(input_ids):
            hidden, calls = self._capture(chunk_ids)
            states.append(hidden.cpu())  # (b, T, D)
            prepared.append(calls)
        for index in track(range(self.units.layers), "layers"):
            calls = [chunk_calls[index] for chunk_calls in prepared]
            family = self._families[index]
            seen = Observation(index, tuple(states), calls, family, self.device)
            yield seen
            if index == self.units.layers - 1:
                return  # nothing asks for the states after the last layer
            layer_mask = LayerMask(mask[None], self.units, index, family)
            states = list(seen.after(layer_mask, self._run))

    @torch.no_grad()
    def states(self, input_ids: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields each layer with the dense states (b, T, D) before and after it, chunk by chunk."""
        self.meter.add(input_ids.numel())
        for chunk in track(self._chunks(input_ids), "windows", unit="batches"):
            hidden, calls = self._capture(chunk)
            for index, call in enumerate(calls):
                before, hidden = hidden, call(hidden)
                yield index, before, hidden

    @torch.no_grad()
    def blocks(self, input_ids: Tensor) -> Iterator[list[Tensor]]:
        """Yields the dense states after attention of a layer, then after its MLP, layer by layer.

        There is one (b, T, D) for each chunk of the sequences, in at least float32, on the host.
        """
        self.meter.add(input_ids.numel())
        captured = [self._capture(chunk) for chunk in self._chunks(input_ids)]
        states, calls = [hidden.cpu() for hidden, _ in captured], [each for _, each in captured]
        del captured  # the embeddings
        for index, layer in enumerate(self._layers):
            between, after = list[Tensor](), list[Tensor]()
            with additions(layer, self.family) as parts:
                for chunk, of_layers in enumerate(calls):
                    before = send(states[chunk], self.device)
                    states[chunk] = of_layers[index](before).cpu()
                    wide = torch.promote_types(before.dtype, torch.float32)
                    attention, mlp = (part.view_as(before) for part in parts)
                    parts.clear()
                    between.append(before.to(attention.device, wide).add(attention).cpu())
                    # Whether what the layer gives is nothing but their sum in this format.
                    same = before.dtype == wide and not self.family.rest
                    sums = states[chunk] if same else between[-1].to(mlp.device).add(mlp).cpu()
                    after.append(sums)
            yield between
            del between
            yield after

    def linear(self, layer: int, kind: str) -> nn.Linear:
        """Returns the projection whose inputs are ``heads`` or ``channels``, or the ``up`` one."""
        return linear_at(self._layers[layer], self._families[layer].projections[kind])

    def projection(self, layer: int, kind: str) -> Tensor:
        """Returns the weight of the projection whose inputs a kind of unit masks, (D, inputs)."""
        return self.linear(layer, kind).weight

    def release_memory(self) -> None:
        """Gives back the memory that is kept for logits between calls."""
        self._logits_memory = LogitsMemory()

    def _chunks(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Splits sequences into passes through the layers, (b, T) each, on the model's device."""
        return send(input_ids, self.device).split(max(1, self.pass_tokens // input_ids.shape[1]))

    def _in_passes(
        self, masks: Tensor, input_ids: Tensor, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Checks and counts masks (K, n), and computes (K, ...) pass by pass."""
        if masks.ndim != 2 or masks.shape[1] != self.units.n:
            raise PruningError(
                f"masks must have shape (K, {self.units.n}), got {tuple(masks.shape)}"
            )
        self.meter.add(len(masks) * input_ids.numel())
        if self.executor == "masked" and self._refit is None:
            together = max(1, self.pass_tokens // input_ids.numel())
            return torch.cat([compute(few) for few in send(masks, self.device).split(together)])
        rows, where = distinct(masks)  # equal masks are evaluated once
        together = rows.split(max(1, _TREE_TOKENS // input_ids.numel()))
        results = [result for few in together for result in compute(few)]
        return torch.stack([results[row] for row in where])

    def _means(
        self, masks: Tensor, input_ids: Tensor, fill: Fill | None, compute: Callable[..., Tensor]
    ) -> Tensor:
        """Computes losses, (K, B); ``compute`` takes states (N, D) and ``memory``, returns (N,)."""

        def of_pass(few: Tensor) -> Tensor:
            hidden = self._hidden(few, input_ids, fill)[:, :, :-1]  # (K, B, T-1, D)
            # Mask by mask, so that a mask's loss does not depend on the other masks of the pass.
            rows = [compute(each.flatten(0, 1), memory=self._logits_memory) for each in hidden]
            return torch.stack(rows).view(hidden.shape[:-1]).mean(dim=2).to(self.device)

        return self._in_passes(masks, input_ids, of_pass)

    def _hidden(self, masks: Tensor, input_ids: Tensor, fill: Fill | None = None) -> Tensor:
        """Computes the hidden states after the final norm under masks (K, n): (K, B, T, D)."""
        refit, units, families = self._refit, self.units, self._families
        run = self._run if refit is None else run_sliced
        layers = range(units.layers)
        ids = send(input_ids, self.device)

        def run_tree_of_masks(hidden: Tensor, calls: list[LayerCall]) -> Tensor:
            by_layer = [
                [LayerMask(mask[None], units, i, families[i], fill, refit) for i in layers]
                for mask in masks
            ]
            prepare(list(chain.from_iterable(by_layer)), self.device)
            return torch.cat(run_tree(run, calls, hidden[None], by_layer)).flatten(0, 1)

        def run_batch_of_masks(hidden: Tensor, calls: list[LayerCall]) -> Tensor:
            states = hidden.unflatten(0, (len(masks), -1))  # (K, B, T, D)
            for index, call in enumerate(calls):
                states = run(call, states, LayerMask(masks, units, index, families[index], fill))
            return states.flatten(0, 1)

        if self.executor == "sliced" or refit is not None:
            hidden = self._decode(ids, run_tree_of_masks)
        else:
            hidden = self._decode(ids.repeat(len(masks), 1), run_batch_of_masks)  # (K*B, T, D)
        return hidden.unflatten(0, (len(masks), -1))

    def _capture(self, input_ids: Tensor) -> tuple[Tensor, list[LayerCall]]:
        """Returns the embeddings (B, T, D) and the calls of all layers, and runs no layer."""
        captured: list[tuple[Tensor, list[LayerCall]]] = []

        def keep(hidden: Tensor, calls: list[LayerCall]) -> Tensor:
            captured.append((hidden, calls))
            return hidden

        self._decode(input_ids, keep)
        return captured[0]

    def _decode(self, input_ids: Tensor, run_layers: RunLayers) -> Tensor:
        """Runs the base model with a function in place of its layers: (N, T) -> (N, T, D)."""
        with self._driver.layers_run_by(run_layers):
            output = base_model(self.model)(input_ids=input_ids, use_cache=False)
        states: Tensor = output.last_hidden_state
        return states  # after the final norm
