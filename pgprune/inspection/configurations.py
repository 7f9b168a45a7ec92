"""Builds models of changed configurations, without weights."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel


def built(model: PreTrainedModel, values: dict[str, Any]) -> PreTrainedModel:
    """Builds a model of a class, with other values of its configuration and without weights."""
    with torch.device("meta"):
        made: PreTrainedModel = type(model)(type(model.config)(**values))
    return made


def values_of_layers(config: Any, kept: Sequence[int]) -> dict[str, Any]:
    """Returns the values of a configuration for some of its layers, by the names of its class.

    Lists with an entry for each layer are cut.

    Args:
        config: of the dense model.
        kept: indices of the kept layers.
    """
    layers = config.num_hidden_layers
    values: dict[str, Any] = config.to_dict()
    for name, value in values.items():
        if isinstance(value, list) and len(value) == layers and "token_id" not in name:
            values[name] = [value[index] for index in kept]
    values[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    return values
