"""Makes a model of layers: chooses the class and the configuration that hold them.

It takes a stock architecture wherever one holds the layers exactly: after pruning whole layers, and
if all layers have the same numbers of heads, channels and experts. Otherwise it takes one of
``pgprune.hub_code``, whose layers may differ.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from pgprune.errors import PruningError, first_line
from pgprune.hub_code.fused import close_weights, head_dim
from pgprune.inspection.configurations import values_of_layers
from pgprune.masking.units import PruningUnits
from pgprune.models.families import family_of, is_found
from pgprune.models.family import Family
from pgprune.models.proof import FAILURES
from pgprune.models.read_config import PRUNED
from pgprune.models.registration import pruned_classes
from pgprune.surgery.generation_settings import savable_generation_config
from pgprune.surgery.pruned_layer import (
    PrunedLayer,
    counting,
    counting_types,
    kept_values,
    layers_with_experts,
    overrides_of,
)

CLASS_KEYS = ("model_type", "architectures", "transformers_version", "auto_map")
"""Values of a configuration that belong to its class and are not copied to another class."""


def assemble(
    model: PreTrainedModel, units: PruningUnits, layers: list[PrunedLayer]
) -> PreTrainedModel:
    """Makes a model of layers, with everything else as in the dense model.

    Args:
        model: the dense model; it is not changed and shares no weights with the result.
        units: its units.
        layers: the layers in order, at least one.

    Returns:
        A Hugging Face model on the same device, in evaluation mode.
    """
    family = family_of(model.config)
    try:
        return _assembled(model, units, layers, family)
    except FAILURES as error:
        if isinstance(error, PruningError) or not is_found(model.config):
            raise
        raise PruningError(
            f"neither a stock {model.config.model_type!r} nor one whose layers differ can be built "
            f"of what is kept ({first_line(error)}); use --uniform, or --format masked"
        ) from error


def _assembled(
    model: PreTrainedModel, units: PruningUnits, layers: list[PrunedLayer], family: Family
) -> PreTrainedModel:
    if family.recurrent is not None:
        layers = counting(model.config.layer_types, layers)
    config = _config(model.config, units, layers, family)
    if not config.model_type.startswith(PRUNED):
        layers = [_closed(layer, family, model.config) for layer in layers]
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return from_weights(model, model_class, config, dict(_weights(model, layers, family)))


def from_weights(
    dense: PreTrainedModel, model_class: Any, config: PretrainedConfig, weights: dict[str, Tensor]
) -> PreTrainedModel:
    """Makes a model of weights by name, in the dense model's number format and on its device."""
    config._experts_implementation = dense.config._experts_implementation
    # As from a file, so that names and shapes are checked.
    made, report = model_class.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=dense.dtype,
        attn_implementation=dense.config._attn_implementation,
        output_loading_info=True,
    )
    assert not any(report.values()), f"surgery and architecture disagree: {report}"
    # from_pretrained(None) has no directory to read the generation settings from.
    made.generation_config = savable_generation_config(dense, config)
    return made.to(dense.device).eval()


def _closed(layer: PrunedLayer, family: Family, dense: PretrainedConfig) -> PrunedLayer:
    """Returns a layer whose weights have the names and the layout of a stock layer."""
    weights = dict(layer.weights)
    for row in family.fused:
        close_weights(weights, f"{row.path}.", row, head_dim(row, dense))
    return replace(layer, weights=weights)


def stock_type(
    dense: PretrainedConfig, units: PruningUnits, kv_heads: int, biases: bool
) -> str | None:
    """Returns the stock architecture whose layers can all have a number of kv heads.

    Args:
        dense: configuration of the dense model.
        units: of the dense model.
        kv_heads: number of kv heads, at least 1.
        biases: whether any projection has a bias.

    Returns:
        Its ``model_type``; None without one.
    """
    family, shape = family_of(dense), units.shapes[0]
    width, heads = int(dense.hidden_size), kv_heads * shape.query_heads_per_group
    fits = {
        "any": True,
        "divisor": width % heads == 0,
        "unscaled": "short_factor" not in (getattr(dense, "rope_parameters", None) or {})
        and not getattr(dense, "qk_layernorm", False),
        "dense": False,
    }
    if fits[family.stock_heads] or kv_heads == shape.kv_heads:
        return str(dense.model_type)
    return None if biases else family.stand_in


def _config(
    dense: PretrainedConfig, units: PruningUnits, layers: list[PrunedLayer], family: Family
) -> PretrainedConfig:
    """Makes a stock configuration if one can hold the layers, else one of ours."""
    kept = [layer.index for layer in layers]
    own = values_of_layers(dense, kept) if is_found(dense) else dense.to_dict()
    values = {key: value for key, value in own.items() if key not in CLASS_KEYS}
    name = dense.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    values[name] = len(layers)  # without the pruned ones
    values["use_cache"] = True  # loading a model to evaluate masks has switched it off
    for name in family.layer_lists:
        if values.get(name) is not None:
            values[name] = [values[name][layer.index] for layer in layers]
    if family.recurrent is not None:
        values["layer_types"] = counting_types(values["layer_types"], layers)
    values |= layers_with_experts(dense, units, layers, family)
    values["pgprune"] = {
        "granularity": units.granularity,
        "layers": kept,
        "dense_layers": units.layers,
    }
    if "per_layer_config" in values:  # layers of the dense model differ
        values["per_layer_config"] = kept_values(values["per_layer_config"], kept)
    overrides = [overrides_of(layer, units, dense, family) for layer in layers]
    if any(override.get("num_attention_heads") is not None for override in overrides):
        values["head_dim"] = units.shapes[0].head_dim  # no longer the width over the heads
    if stock := _stock(dense, units, layers):
        if stock != dense.model_type:  # mistral in place of llama
            values["sliding_window"] = None
        equal = {key: value for override in overrides for key, value in override.items()}
        return AutoConfig.for_model(stock, **(values | equal))
    classes = pruned_classes(dense.model_type)
    if family.query:  # else nobody knows the heads
        values["head_dim"] = units.shapes[0].head_dim
    if family.layout is not None:
        values["layout"] = family.layout
    elif any("skip" in override for override in overrides):
        values["block_norms"] = {
            "attention": list(family.attention_norms),
            "mlp": list(family.mlp_norms),
        }
        if family.experts is not None and family.down != "mlp":
            values["mlp_module"] = family.down
    if any("biases" in override for override in overrides):
        values["biases"] = []  # transformers needs a value for the layers without added biases
    if any("value_dims" in override for override in overrides):
        values["value_dims"] = []
    if stock_layers := values.pop("per_layer_config", {}):
        values["stock_layers"] = stock_layers
    own_values = (stock_layers.get(new, {}) | override for new, override in enumerate(overrides))
    config: PretrainedConfig = classes.config(
        **values,
        per_layer_config={new: each for new, each in enumerate(own_values) if each},
        allow_global_per_layer_attribute_access=True,  # tools print the dense values
        auto_map=classes.auto_map,
    )
    return config


def _stock(dense: PretrainedConfig, units: PruningUnits, layers: list[PrunedLayer]) -> str | None:
    """Returns the stock architecture that holds the layers, or None."""
    mixture = any(shape.experts for shape in units.shapes)
    kv_heads, *others = {layer.kv_heads for layer in layers}
    widths = {
        (layer.channels, layer.experts)
        for layer in layers
        if units.shapes[layer.index].experts or not mixture
    }
    # Layers that differ, lack a block or have added biases or fewer values need a class of ours.
    if (
        others
        or len(widths) > 1
        or not kv_heads
        or any(not channels for channels, _ in widths)
        or any(x.skip or x.biases or x.value_dims for x in layers)
    ):
        return None
    # The stand-in, Mistral, has no biases.
    biases = any(name.endswith(".bias") for layer in layers for name in layer.weights)
    return stock_type(dense, units, kv_heads, biases)


def _weights(
    model: PreTrainedModel, layers: list[PrunedLayer], family: Family
) -> Iterator[tuple[str, Tensor]]:
    """Yields copies of the weights of the pruned model by name, tied ones once."""
    for name, parameter in model.named_parameters():
        if not name.startswith(f"{family.layers}."):  # embeddings, final norm, head
            yield name, parameter.clone()
    for new, layer in enumerate(layers):
        for name, weight in layer.weights.items():
            path, _, kind = name.rpartition(".")
            if layer.value_dims and path in (family.value, family.output):
                name = f"{path}.linear.{kind}"  # see keep_values of the code that travels
            yield f"{family.layers}.{new}.{name}", weight
