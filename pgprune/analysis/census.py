"""Counts what a model is made of: parameters by kind and layer, and the cache of a token."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from pgprune.models.families import family_of
from pgprune.models.family import Family
from pgprune.models.read_config import PRUNED
from pgprune.models.rows import FAMILIES

KINDS = ("embeddings", "attention", "mlp", "experts", "norms", "head", "other")
"""Kinds of parameters; ``experts`` are with their router, ``norms`` are all but those of heads."""

_PROBE = 2  # tokens whose cache is measured


@dataclass(frozen=True)
class Census:
    """What a model is made of.

    Attributes:
        parameters: by kind, tied ones once.
        layers: parameters of each decoder layer, by kind.
        cache: numbers that each layer keeps for a token in the cache of keys and values.
        tied: whether the head is the embeddings.
    """

    parameters: dict[str, int]
    layers: list[dict[str, int]]
    cache: list[int]
    tied: bool

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())

    def memory(self, itemsize: int, tokens: int) -> int:
        """Returns the bytes of the weights, and of the cache of a number of tokens."""
        return itemsize * (self.total + tokens * sum(self.cache))


def census(model: PreTrainedModel) -> Census:
    """Counts the parameters of a causal LM of a known family, pruned or not, and its cache."""
    family = _family(model)
    layers: list[Counter[str]] = [Counter() for _ in _submodule(model, family.layers)]
    parameters: Counter[str] = Counter()
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    for name, parameter in model.named_parameters():  # tied ones once, as embeddings
        kind, layer = _kind(name, family), _layer(name, family)
        if parameter is embeddings.weight:
            kind = "embeddings"
        elif head is not None and any(parameter is own for own in head.parameters()):
            kind = "head"
        parameters[kind] += parameter.numel()
        if layer is not None:
            layers[layer][kind] += parameter.numel()
    return Census(
        {kind: parameters[kind] for kind in KINDS if parameters[kind]},
        [dict(layer) for layer in layers],
        _cache(model, len(layers)),
        head is not None and head.weight is embeddings.weight,
    )


def _family(model: PreTrainedModel) -> Family:
    """Returns the family of a model, or of the dense one that it was pruned from."""
    dense = model.config.model_type.removeprefix(PRUNED).removeprefix("slicegpt_")
    return FAMILIES[dense] if dense in FAMILIES else family_of(model.config)


def _submodule(model: nn.Module, path: str) -> Iterator[nn.Module]:
    return model.get_submodule(path).children()


def _layer(name: str, family: Family) -> int | None:
    """Returns the decoder layer of a parameter, None for those of none."""
    rest = name.removeprefix(f"{family.layers}.")
    return None if rest == name else int(rest.partition(".")[0])


def _kind(name: str, family: Family) -> str:
    """Tells the kind of a parameter by its name."""
    if _layer(name, family) is None:
        if any(_within(name, place) for place in (family.positions, *family.embeddings) if place):
            return "embeddings"
        return "norms" if _within(name, family.final_norm) else "other"
    path = name.removeprefix(f"{family.layers}.").partition(".")[2]
    if any(_within(path, norm) for norm in (*family.attention_norms, *family.mlp_norms)):
        return "norms"
    if any(_within(path, place) for place in (family.attention, *(family.recurrent or ()))):
        return "attention"
    experts = family.experts
    of_mixture = experts is not None and any(
        _within(path, place) for place in (experts.experts, experts.router)
    )
    return "experts" if of_mixture else "mlp"


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


@torch.no_grad()
def _cache(model: PreTrainedModel, layers: int) -> list[int]:
    """Measures the numbers in the cache for each token, layer by layer."""
    ids = torch.zeros(1, _PROBE, dtype=torch.int64, device=model.device)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    found = [0] * layers
    for index, layer in enumerate(getattr(cache, "layers", ())[:layers]):
        parts = (getattr(layer, name, None) for name in ("keys", "values"))  # not of a state
        tensors = [part for part in parts if part is not None]
        found[index] = sum(part.numel() for part in tensors) // _PROBE
    return found
