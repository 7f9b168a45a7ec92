"""Driving a Hugging Face decoder layer by layer, without copying its code.

Stations stand in for the decoder layers during one call of the model. They record the arguments
that each layer would get (rotary embeddings, attention mask), and the last one hands all of them to
whoever drives.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import masking_utils

from pgprune.masking.executors import LayerCall

Drive = Callable[[Tensor, list[LayerCall]], Tensor]
"""Runs layers: the states before the first one, (N, T, D), and the calls of all, to those after."""


class Stations:
    """The stations of a decoder.

    Args:
        decoder: the module that has ``layers``.
    """

    def __init__(self, decoder: nn.Module) -> None:
        layers: Any = decoder.layers
        self._decoder = decoder
        self._layers = layers
        self._stations = nn.ModuleList(map(_Station, layers))

    @contextmanager
    def driven(self, drive: Drive) -> Iterator[None]:
        """Lets the decoder leave its layers to ``drive``."""
        stations: Any = self._stations

        def last(hidden: Tensor) -> Tensor:
            return drive(hidden, [station.call for station in stations])

        stations[-1].then = last
        self._decoder.layers = self._stations
        try:
            with _one_sequence_a_row():
                yield
        finally:
            self._decoder.layers = self._layers
            stations[-1].then = None  # which holds what it drives on


@contextmanager
def _one_sequence_a_row() -> Iterator[None]:
    """Tells transformers that no row packs several sequences.

    It would find out by reading the positions, in each forward pass, and the host would wait for
    all that the device still has to do.
    """
    search = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = search


class _Station(nn.Module):
    """Stands in for one decoder layer: records how it would be called."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # A tuple hides the layer from module registration, so no parameter moves.
        self._layer = (layer,)
        self.attention_type = getattr(layer, "attention_type", None)
        self.then: Callable[[Tensor], Tensor] | None = None
        self.call = LayerCall(layer, (), {})

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.call = LayerCall(self._layer[0], args, kwargs)
        return self.then(hidden) if self.then else hidden
