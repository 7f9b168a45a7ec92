"""Runs each attention and each MLP of a pruned model by itself, on given states."""

from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune.errors import PruningError
from pgprune.finetuning.objectives import Autocast
from pgprune.finetuning.parts import listed_family
from pgprune.inspection.base_model import base_model
from pgprune.masking.executors import LayerCall
from pgprune.masking.kept_weights import calling
from pgprune.masking.layer_driver import LayerDriver
from pgprune.models.families import decoder_layers
from pgprune.models.family import Family
from pgprune.models.residual import added
from pgprune.surgery.cuts import block_names

BLOCKS = {"attention": "heads", "mlp": "channels"}
"""The blocks of a layer in order, each with the kind of unit that ends it."""


class Blocks:
    """The blocks of a pruned model.

    Args:
        model: a causal LM of a listed family, pruned or not.
        autocast: number format of the products.

    Attributes:
        layers: of the model.
        parallel: whether both blocks of a layer read the states before it.

    Raises:
        PruningError: a layer is more than its blocks.
    """

    def __init__(self, model: PreTrainedModel, autocast: Autocast) -> None:
        self._model, self._autocast = model, autocast
        family = listed_family(model.config)
        if family.rest:
            raise PruningError(
                f"layers of the family {model.config.model_type!r} do more than their attention "
                "and MLP, which --local fits one by one; finetune without --local"
            )
        self.layers = decoder_layers(model, family)
        self._families = [family.of(layer) for layer in self.layers]
        self.parallel = family.parallel
        decoder, _, name = family.layers.rpartition(".")
        self._driver = LayerDriver(model.get_submodule(decoder), name, family.tuples)

    def parameters(self, layer: int, block: str) -> list[nn.Parameter]:
        """Returns all weights of a block, with its norms; none of one that adds nothing."""
        family = self._families[layer]
        prefixes = block_names((block,), family)
        end = family.output if block == "attention" else family.down
        named = dict(self.layers[layer].named_parameters())
        if not any(name.startswith(f"{end}.") for name in named):
            return []  # no unit is left, and what its norm does reaches nothing
        return [parameter for name, parameter in named.items() if name.startswith(prefixes)]

    def embedded(self, ids: Tensor) -> Tensor:
        """Returns the states of windows before the first layer, (b, T, D)."""
        return self._captured(ids)[0]

    def added(self, layer: int, block: str, ids: Tensor, states: Tensor) -> Tensor:
        """Computes what a block adds to the stream.

        Args:
            layer: index of its layer.
            block: ``attention`` or ``mlp``.
            ids: of the windows, (b, T).
            states: that the block reads, (b, T, D).

        Returns:
            (b, T, D).
        """
        call, family = self._captured(ids)[1][layer], self._families[layer]
        path = family.output if block == "attention" else family.down
        if path not in dict(call.layer.named_modules()):
            return torch.zeros_like(states)  # the block is pruned as a whole
        found: list[Tensor] = []

        def reached(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        hook = call.layer.get_submodule(path).register_forward_hook(reached)
        try:
            with self._autocast(), suppress(_Reached):
                if block == "attention":
                    call(states)
                else:
                    nothing = partial(_nothing, family)
                    with calling(call.layer.get_submodule(family.attention), nothing):
                        call(states)
        finally:
            hook.remove()
        return added(call.layer, family, BLOCKS[block], found[0].view_as(states))

    @torch.no_grad()
    def _captured(self, ids: Tensor) -> tuple[Tensor, list[LayerCall]]:
        """Returns the embeddings (b, T, D) of windows and the calls of all layers; runs none."""
        captured: list[tuple[Tensor, list[LayerCall]]] = []

        def keep(hidden: Tensor, calls: list[LayerCall]) -> Tensor:
            captured.append((hidden, calls))
            return hidden

        with self._driver.layers_run_by(keep):
            base_model(self._model)(input_ids=ids, use_cache=False)
        return captured[0]


class _Reached(Exception):
    """Ends the run of a layer at a module whose output is known by then."""


def _nothing(
    family: Family, hidden_states: Tensor, *args: Any, **kwargs: Any
) -> Tensor | tuple[Tensor, None]:
    """Stands in for attention: adds nothing to the stream."""
    nothing = torch.zeros_like(hidden_states)
    return nothing if family.alone else (nothing, None)
