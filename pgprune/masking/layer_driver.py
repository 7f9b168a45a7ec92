"""Runs a Hugging Face decoder layer by layer, without a copy of its code.

During one call of the model, recorders stand in for the decoder layers. Each records the arguments
that its layer would get (rotary embeddings, attention mask), and the last one passes the calls of
all layers to a function that runs them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import masking_utils

from pgprune.masking.executors import LayerCall

RunLayers = Callable[[Tensor, list[LayerCall]], Tensor]
"""Runs all layers: the states before the first, (N, T, D), and the calls, to the states after."""


class LayerDriver:
    """Replaces the layers of a decoder by a function.

    Args:
        decoder: the module that has them.
        name: of their list in it.
        tuples: whether a layer returns a tuple, with the states first.
    """

    def __init__(self, decoder: nn.Module, name: str, tuples: bool = False) -> None:
        layers: Any = getattr(decoder, name)
        self._decoder = decoder
        self._name = name
        self._layers = layers
        self._recorders = nn.ModuleList(_LayerRecorder(layer, tuples) for layer in layers)

    @contextmanager
    def layers_run_by(self, run_layers: RunLayers) -> Iterator[None]:
        """Lets ``run_layers`` run the layers when the model is called in the body."""
        recorders: Any = self._recorders

        def last(hidden: Tensor) -> Tensor:
            return run_layers(hidden, [recorder.call for recorder in recorders])

        recorders[-1].then = last
        setattr(self._decoder, self._name, self._recorders)
        try:
            with _one_sequence_a_row():
                yield
        finally:
            setattr(self._decoder, self._name, self._layers)
            recorders[-1].then = None  # the closure would keep its tensors alive


@contextmanager
def _one_sequence_a_row() -> Iterator[None]:
    """Tells transformers that no row packs several sequences.

    Without this it reads the positions in each forward pass to find out, and the host waits for all
    work that the device still has.
    """
    search = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = search


class _LayerRecorder(nn.Module):
    """Stands in for one decoder layer and records how it would be called."""

    def __init__(self, layer: nn.Module, tuples: bool) -> None:
        super().__init__()
        self._tuples = tuples
        # A tuple hides the layer from module registration, so no parameter moves.
        self._layer = (layer,)
        self.attention_type = getattr(layer, "attention_type", None)
        self.then: Callable[[Tensor], Tensor] | None = None
        self.call = LayerCall(layer, (), {})

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, None]:
        self.call = LayerCall(self._layer[0], args, kwargs)
        states = self.then(hidden) if self.then else hidden
        return (states, None) if self._tuples else states
