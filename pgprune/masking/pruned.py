"""Lends a dense model as the pruned one, for code that calls the model itself."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from pgprune.masking.executors import multiplied
from pgprune.masking.layer_mask import LayerMask
from pgprune.masking.masked_lm import MaskedLM
from pgprune.models.families import decoder_layers, family_of


@contextmanager
def pruned(lm: MaskedLM, mask: Tensor) -> Iterator[None]:
    """Makes calls of the model in the body compute what the model pruned by a mask (n,) would.

    No weight is touched or copied: hooks multiply what the mask prunes by zero. The logits are, bit
    for bit, those of a model whose pruned weights are zero.
    """
    family = family_of(lm.model.config)
    with ExitStack() as stack:
        for index, layer in enumerate(decoder_layers(lm.model, family)):
            part = LayerMask(mask[None], lm.units, index, family)
            stack.enter_context(multiplied(layer, part))
            if "layer" in part.by_kind and not part.by_kind["layer"][0]:
                hook = layer.register_forward_hook(_skip)
                stack.callback(hook.remove)
        yield


def _skip(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Returns a layer's input in place of its output; the cache of keys and values still grows."""
    return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]
