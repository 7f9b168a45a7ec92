"""Lends a dense model as the pruned one, for code that calls the model itself."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune.errors import PruningError, first_line
from pgprune.inspection.base_model import base_model
from pgprune.inspection.probe import probe_ids
from pgprune.losses.tokens import logits_of
from pgprune.masking.executors import EXECUTORS, multiplied
from pgprune.masking.layer_mask import LayerMask
from pgprune.masking.masked_lm import MaskedLM
from pgprune.models.families import decoder_layers, family_of
from pgprune.models.proof import FAILURES, same


@contextmanager
def pruned(lm: MaskedLM, mask: Tensor) -> Iterator[None]:
    """Makes calls of the model in the body compute what the model pruned by a mask (n,) would.

    No weight is touched or copied: hooks multiply what the mask prunes by zero. The logits are, bit
    for bit, those of a model whose pruned weights are zero.
    """
    family = family_of(lm.model.config)
    with ExitStack() as stack:
        for index, layer in enumerate(decoder_layers(lm.model, family)):
            part = LayerMask(mask[None], lm.units, index, family.of(layer))
            stack.enter_context(multiplied(layer, part))
            if "layer" in part.by_kind and not part.by_kind["layer"][0]:
                hook = layer.register_forward_hook(_skip)
                stack.callback(hook.remove)
        yield


@torch.no_grad()
def check_logits(model: PreTrainedModel) -> None:
    """Checks that losses of a model without a row of its own are computed as it does.

    Raises:
        PruningError: its logits are others than those that losses are computed from.
    """
    ids = probe_ids(model, 2)
    logits = model(input_ids=ids, use_cache=False).logits  # (B, T, vocabulary)
    states = base_model(model)(input_ids=ids, use_cache=False).last_hidden_state
    if not same(logits_of(model, states), logits, logits):
        raise PruningError(
            f"the logits of the family {model.config.model_type!r} are not those of its head on "
            "its last hidden states, so that its losses cannot be measured; give a model of a "
            "known family"
        )


@torch.no_grad()
def check_masks(lm: MaskedLM) -> None:
    """Checks that masks compute the same in all ways, for a family that was found.

    Raises:
        PruningError: they do not.
    """
    check_logits(lm.model)  # type: ignore[arg-type]
    ids, n = probe_ids(lm.model, 2), lm.units.n  # type: ignore[arg-type]
    some = (torch.arange(n) % 3 != 1).to(torch.uint8)
    headless = some * (lm.units.group != 0)  # nothing of the first kind in the first layer
    masks = torch.stack([lm.units.ones(), some, headless])
    expected = torch.stack(
        [pruned_logits(lm, mask, ids) for mask in masks]
    )  # (K, B, T, vocabulary)
    for executor in EXECUTORS:
        try:
            logits = MaskedLM(lm.model, lm.units, executor).logits(masks, ids)
            equal = same(logits, expected, expected[1:] - expected[0])
        except FAILURES as error:
            raise PruningError(f"the model cannot run under masks ({first_line(error)})") from error
        if not equal:
            raise PruningError(
                f"masks of {lm.units.granularity} do not compute what the model does without "
                f"their units (executor {executor}); choose another --granularity"
            )


def pruned_logits(lm: MaskedLM, mask: Tensor, ids: Tensor) -> Tensor:
    """Computes the logits of tokens (B, T) by the whole model, pruned by a mask (n,)."""
    with pruned(lm, mask):
        logits: Tensor = lm.model(input_ids=ids, use_cache=False).logits
    return logits


def _skip(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Returns a layer's input in place of its output; the cache of keys and values still grows."""
    return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]
