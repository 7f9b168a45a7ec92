"""Surgery: a mask becomes a model that is physically smaller, with the same logits.

What a mask prunes is cut out of the weights: kv groups with their query heads, MLP channels, whole
blocks with their norms. Layers of which nothing is left are dropped and the others renumbered. The
parameters that go are those that the units count, exactly: a layer whose heads are all pruned
keeps its norm, because heads and channels cost neither norms nor the biases of the output and down
projections, which stay; a pruned block or layer costs all it has.

Where the stock architecture can hold the result, as after pruning whole layers, it is a stock
model; else it is one of ``pgprune.hub_code``.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from pgprune.errors import PruningError
from pgprune.executors import LayerMask
from pgprune.families import Family, decoder_layers, family_of
from pgprune.registration import pruned_classes
from pgprune.units import LayerShape, PruningUnits

_OWN_KEYS = ("model_type", "architectures", "transformers_version")  # of a configuration class


@dataclass(frozen=True)
class LayerPlan:
    """What a mask leaves of one decoder layer.

    Attributes:
        index: of the layer in the dense model.
        heads: indices of the kept kv groups, (h,); None where all are kept or the block is gone.
        channels: indices of the kept channels, (c,); None where all are kept or the block is gone.
        skip: the blocks that are gone with their norms: of ``attention`` and ``mlp``.
    """

    index: int
    heads: Tensor | None
    channels: Tensor | None
    skip: tuple[str, ...]

    @property
    def attends(self) -> bool:
        """Whether any head is left."""
        return "attention" not in self.skip and (self.heads is None or len(self.heads) > 0)


def plan_layers(units: PruningUnits, mask: Tensor, family: Family) -> list[LayerPlan]:
    """What a mask leaves of each layer.

    Args:
        units: the units of the dense model.
        mask: (n,) of zeros and ones.
        family: of the model.

    Returns:
        The plans of the layers that stay, in order.

    Raises:
        PruningError: the mask is over other units, or leaves no layer.
    """
    if mask.shape != (units.n,):
        raise PruningError(f"the mask must have shape ({units.n},), got {tuple(mask.shape)}")
    plans = []
    for index in range(units.layers):
        part = LayerMask(mask.cpu()[None], units, index, family)
        skip = tuple(block for block in ("attention", "mlp") if _gone(part, block))
        heads = None if "attention" in skip else part.kept("heads", "attention")
        channels = None if "mlp" in skip else part.kept("channels", "mlp")
        if len(skip) < 2:
            plans.append(LayerPlan(index, heads, channels, skip))
    if not plans:
        raise PruningError("the mask prunes every layer, so no model is left; prune less")
    return plans


@torch.no_grad()
def prune(model: PreTrainedModel, units: PruningUnits, mask: Tensor) -> PreTrainedModel:
    """Cuts what a mask prunes out of a model.

    Args:
        model: a dense causal LM of a known family; it is not changed and shares no weights with
            the result.
        units: its units.
        mask: (n,) of zeros and ones, 1 keeps.

    Returns:
        A Hugging Face model with ``units.pruned_parameters(mask)`` parameters less, on the same
        device, in evaluation mode. ``save_pretrained`` saves everything but the tokenizer.

    Raises:
        PruningError: the mask is over other units, or leaves no layer.
    """
    family = family_of(model.config)
    plans = plan_layers(units, mask, family)
    model_class, config = _class_and_config(model, units, plans, family)
    loaded: Any = model_class.from_pretrained(
        None,
        config=config,
        state_dict=dict(_weights(model, units, plans, family)),
        dtype=model.dtype,
        attn_implementation=model.config._attn_implementation,
        output_loading_info=True,
    )
    pruned, report = loaded
    assert not any(report.values()), f"surgery and architecture disagree: {report}"
    pruned.generation_config = _generation_config(model, config)
    return pruned.to(model.device).eval()


@torch.no_grad()
def zero_pruned(model: PreTrainedModel, units: PruningUnits, mask: Tensor) -> PreTrainedModel:
    """Fills everything that a mask prunes with zeros, in the model itself.

    Args:
        model: a dense causal LM of a known family.
        units: its units.
        mask: (n,) of zeros and ones, 1 keeps.

    Returns:
        The same model.

    Raises:
        PruningError: the mask is over other units, or leaves no layer.
    """
    family = family_of(model.config)
    layers = decoder_layers(model, family)
    plans = {plan.index: plan for plan in plan_layers(units, mask, family)}
    for index, layer in enumerate(layers):
        plan = plans.get(index, LayerPlan(index, None, None, ("attention", "mlp")))
        gone = _skipped(plan, family)
        for name, parameter in layer.named_parameters():
            if name.startswith(gone):
                parameter.zero_()
        shape = units.shapes[index]
        for kept, total, cuts in (
            (plan.heads, shape.kv_heads, _head_cuts),
            (plan.channels, shape.channels, _channel_cuts),
        ):
            if kept is not None:
                pruned = torch.ones(total, dtype=torch.bool).index_fill(0, kept, False)
                for name, dim, index_ in cuts(pruned.nonzero().flatten(), shape, family, layer):
                    parameter = layer.get_parameter(name)
                    parameter.index_fill_(dim, index_.to(parameter.device), 0)
    return model


def _gone(part: LayerMask, block: str) -> bool:
    """Whether a mask prunes a whole block, and not the units in it."""
    keep = part.parts.get(block, part.parts.get("layer"))
    return keep is not None and not bool(keep[0, 0])


def _class_and_config(
    model: PreTrainedModel, units: PruningUnits, plans: list[LayerPlan], family: Family
) -> tuple[type[PreTrainedModel], PretrainedConfig]:
    """The class of the pruned model and its configuration: stock ones if they can hold it."""
    dense = model.config
    values = {key: value for key, value in dense.to_dict().items() if key not in _OWN_KEYS}
    values["num_hidden_layers"] = len(plans)
    values["use_cache"] = True  # evaluating masks does without
    if values.get("layer_types") is not None:
        values["layer_types"] = _layer_types(values["layer_types"], plans)
    values["pgprune"] = {
        "granularity": units.granularity,
        "layers": [plan.index for plan in plans],
        "dense_layers": units.layers,
    }
    overrides = {new: _overrides(plan, units, dense, family) for new, plan in enumerate(plans)}
    if not any(overrides.values()):
        return type(model), type(dense)(**values)
    classes = pruned_classes(dense.model_type)
    values["head_dim"] = units.shapes[0].head_dim  # no longer the width over the number of heads
    config = classes.config(
        **values,
        per_layer_config={new: override for new, override in overrides.items() if override},
        allow_global_per_layer_attribute_access=True,  # of the dense values: tools print them
        auto_map=classes.auto_map,
    )
    return classes.causal_lm, config


def _overrides(
    plan: LayerPlan, units: PruningUnits, dense: PretrainedConfig, family: Family
) -> dict[str, Any]:
    """What is different about one layer, in the words of ``per_layer_config``."""
    values: dict[str, Any] = {"skip": list(plan.skip)} if plan.skip else {}
    if plan.heads is not None:
        per_group = units.shapes[plan.index].query_heads_per_group
        values["num_attention_heads"] = len(plan.heads) * per_group
        if hasattr(dense, "num_key_value_heads"):
            values["num_key_value_heads"] = len(plan.heads)
    if plan.channels is not None:
        values[family.channel_count] = len(plan.channels)
    return values


def _layer_types(types: list[str], plans: list[LayerPlan]) -> list[str]:
    """The attention types of the layers that stay.

    A layer without attention takes the type of the next one with attention (of the last one after
    it), so that each type's first slot of the cache is in use: caches ask it how long the text is.
    """
    own = [types[plan.index] if plan.attends else None for plan in plans]
    attending = [kind for kind in own if kind is not None] or [types[0]]
    found = [*own, attending[-1]]
    return [next(kind for kind in found[i:] if kind is not None) for i in range(len(plans))]


def _weights(
    model: PreTrainedModel, units: PruningUnits, plans: list[LayerPlan], family: Family
) -> Iterator[tuple[str, Tensor]]:
    """The weights of the pruned model by name, tied ones once; all are copies."""
    for name, parameter in model.named_parameters():
        if not name.startswith(f"{family.layers}."):
            yield name, parameter.clone()
    layers = decoder_layers(model, family)
    for new, plan in enumerate(plans):
        weights = _layer_weights(layers[plan.index], plan, units.shapes[plan.index], family)
        for name, weight in weights.items():
            yield f"{family.layers}.{new}.{name}", weight


def _layer_weights(
    layer: nn.Module, plan: LayerPlan, shape: LayerShape, family: Family
) -> dict[str, Tensor]:
    """The weights that a plan leaves of a layer, by name."""
    weights: dict[str, Tensor] = {
        name: parameter
        for name, parameter in layer.named_parameters()
        if not name.startswith(_skipped(plan, family))
    }
    for kept, cuts in ((plan.heads, _head_cuts), (plan.channels, _channel_cuts)):
        for name, dim, index in cuts(kept, shape, family, layer) if kept is not None else ():
            if len(index):
                weights[name] = weights[name].index_select(dim, index.to(weights[name].device))
            else:
                del weights[name]
    return {
        name: weight.clone() if isinstance(weight, nn.Parameter) else weight
        for name, weight in weights.items()
    }


def _skipped(plan: LayerPlan, family: Family) -> tuple[str, ...]:
    """What the names of the parameters of the skipped blocks of a layer begin with."""
    modules: tuple[str, ...] = ()
    if "attention" in plan.skip:
        modules += (family.attention, *family.attention_norms)
    if "mlp" in plan.skip:
        modules += (*family.expand, family.down, *family.mlp_norms)
    return tuple(f"{module}." for module in modules)


Cuts = Iterator[tuple[str, int, Tensor]]


def _head_cuts(groups: Tensor, shape: LayerShape, family: Family, layer: nn.Module) -> Cuts:
    """Where kv groups (h,) lie: names of parameters, dimensions and indices along them."""
    rows = _expand(groups, shape.head_dim)
    queries = _expand(groups, shape.head_dim * shape.query_heads_per_group)
    for path, index in ((family.key, rows), (family.value, rows), (family.query, queries)):
        for name, _ in layer.get_submodule(path).named_parameters():
            yield f"{path}.{name}", 0, index
    yield f"{family.output}.weight", 1, queries


def _channel_cuts(channels: Tensor, shape: LayerShape, family: Family, layer: nn.Module) -> Cuts:
    """Where channels (c,) lie: names of parameters, dimensions and indices along them."""
    for path in family.expand:
        for name, _ in layer.get_submodule(path).named_parameters():
            yield f"{path}.{name}", 0, channels
    yield f"{family.down}.weight", 1, channels


def _expand(groups: Tensor, width: int) -> Tensor:
    """Indices of all rows of groups of a width: (h,) -> (h * width,)."""
    return (groups[:, None] * width + torch.arange(width)).flatten()


def _generation_config(model: PreTrainedModel, config: PretrainedConfig) -> GenerationConfig:
    """The dense model's way of generating text, in a form that can be saved."""
    generation: Any = copy.deepcopy(model.generation_config)
    generation.use_cache = config.use_cache
    try:
        generation.validate(strict=True)
    except ValueError:  # settings of sampling without sampling, as Llama 2 has them
        generation.do_sample = True
    return generation
