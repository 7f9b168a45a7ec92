"""What all code asks about a model's family: its row, what it refuses, its modules."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pgprune.errors import PruningError
from pgprune.models.family import REFUSED, Family
from pgprune.models.opening import open_layers
from pgprune.models.rows import FAMILIES

_MOST_LAYERS = 10_000

_FOUND: dict[str, Family] = {}
"""Families that were found and proven on a model which this process has loaded."""


def check_layers(config: Mapping[str, Any], where: str) -> None:
    """Refuses a number of layers that is a mistake, before a configuration makes lists as long.

    Args:
        config: as a file says it.
        where: the file, for the error.

    Raises:
        PruningError: there are more than 10,000.
    """
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise PruningError(
            f"the {where} says {layers:,} layers (num_hidden_layers); more than {_MOST_LAYERS:,} "
            "are taken for a mistake"
        )


def family_of(config: Any) -> Family:
    """Returns the family of a Hugging Face model configuration.

    Raises:
        PruningError: the family is unknown, or a variant of it that masks cannot describe.
    """
    model_type = getattr(config, "model_type", None)
    if model_type in _FOUND:
        return _FOUND[model_type]
    if model_type not in FAMILIES:
        raise PruningError(
            f"the model family {model_type!r} is not supported; known families: "
            f"{', '.join(sorted(FAMILIES))}, and what --family auto proves"
        )
    for name, value, reason in REFUSED:
        if getattr(config, name, None) is value:
            raise PruningError(reason)
    family = FAMILIES[model_type]
    parallel = getattr(config, "use_parallel_residual", family.parallel)
    return family if parallel == family.parallel else replace(family, parallel=parallel)


def add_found(model_type: str, family: Family) -> None:
    """Keeps a family that was proven on a loaded model, for this process.

    Raises:
        PruningError: a model of the family was loaded before that is built otherwise.
    """
    if _FOUND.setdefault(model_type, family) != family:
        raise PruningError(
            "this process has loaded another model of this family that is built otherwise; start "
            "a process for each"
        )


def is_found(config: Any) -> bool:
    """Whether the family of a configuration was found on a loaded model, and is none of ours."""
    return getattr(config, "model_type", None) in _FOUND


def check_kinds(config: Any, kinds: Iterable[str]) -> None:
    """Checks that units of some kinds can be pruned in the family of a configuration.

    Raises:
        PruningError: they cannot.
    """
    refused = family_of(config).refused
    for kind in (kind for kind in refused if kind in kinds):
        raise PruningError(
            f"units of the kind {kind!r} cannot be pruned in the family {config.model_type!r}, "
            f"because {refused[kind]}; choose a --granularity without {', '.join(refused)}"
        )
    experts = family_of(config).experts
    if experts is None or experts.groups is None or "experts" not in kinds:
        return
    if (groups := getattr(config, experts.groups)) > 1:
        raise PruningError(
            f"experts cannot be pruned where a router first chooses among {groups} groups of them "
            f"({experts.groups}); choose --granularity blocks or layers"
        )


def projection_of(model: nn.Module, layer: int, kind: str) -> nn.Linear | None:
    """Returns a projection of ``Family.projections``; None if the model lacks it.

    Args:
        model: a causal LM of a known family.
        layer: index of the layer.
        kind: ``heads``, ``channels`` or ``up``.
    """
    family = family_of(model.config)
    layers = decoder_layers(model, family)
    if layer >= len(layers):
        return None
    path = family.of(layers[layer]).projections.get(kind)
    return None if path is None else linear_at(layers[layer], path)


def refitted_of(model: nn.Module, layer: int, kind: str) -> tuple[Tensor, Tensor | None] | None:
    """Returns the weight and the bias that a repair refits; None if the model lacks them.

    Args:
        model: a causal LM of a known family.
        layer: index of the layer.
        kind: a key of ``Family.refitted``.
    """
    family = family_of(model.config)
    layers = decoder_layers(model, family)
    names = family.of(layers[layer]).refitted.get(kind) if layer < len(layers) else None
    if names is None:
        return None
    weight, bias = (_parameter_at(layers[layer], name) for name in names)
    return None if weight is None else (weight, bias)


def decoder_layers(model: nn.Module, family: Family) -> nn.ModuleList:
    """Returns the list of decoder layers of a causal LM, and opens what is fused in them."""
    layers = model.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    open_layers(layers, family.fused, model.config)
    return layers


def head_sizes(layer: nn.Module, family: Family) -> tuple[int, int, int]:
    """Returns kv heads, query heads of each, and their size; of unknown heads, one of all inputs.

    Args:
        layer: a decoder layer.
        family: of the model.
    """
    if not family.query:
        return 1, 1, linear_at(layer, family.output).in_features
    head_dim: Any = getattr(layer.get_submodule(family.attention), family.head_dim)
    query, key = (linear_at(layer, path).out_features for path in (family.query, family.key))
    return key // head_dim, query // key, head_dim


def linear_at(layer: nn.Module, path: str) -> nn.Linear:
    """Returns a projection of a layer, as ``get_submodule`` does in ten times the time."""
    module = module_at(layer, path)
    assert isinstance(module, nn.Linear), f"{path} is not a linear projection"
    return module


def module_at(layer: nn.Module, path: str) -> Any:
    """Returns a module of a layer, None if there is none; else as ``linear_at``."""
    module: Any = layer
    for name in path.split("."):
        module = None if module is None else module._modules.get(name)
    return module


def _parameter_at(layer: nn.Module, name: str) -> Tensor | None:
    path, _, own = name.rpartition(".")
    found: Tensor | None = getattr(module_at(layer, path), own, None)
    return found
