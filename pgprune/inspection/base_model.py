"""Finds the model below the head of a causal LM."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel


def base_model(model: nn.Module) -> Any:
    """Returns the part of a causal LM that gives hidden states.

    Llama 4 calls it by another name than its class says, and then gives itself.
    """
    base: Any = model.base_model
    if base is not model:
        return base
    return next(part for part in model.children() if isinstance(part, PreTrainedModel))
