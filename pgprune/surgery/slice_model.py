"""Makes a model with a narrower residual stream of a dense model and slices (SliceGPT).

In the basis of a point's rotation the stream has ``width`` numbers. The projections after the point
read them, and those before it write them. A shortcut R2' R1 maps the stream from the basis of one
point to that of the next. The last layer writes the full width, so the head is not sliced. Gains of
norms are folded into the projections that follow. If norms subtract the mean, the weights that
write to the stream subtract it instead. Tied embeddings are separated. Heads, channels and the
cache stay as they are.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune.errors import PruningError
from pgprune.models.families import decoder_layers, family_of
from pgprune.models.family import Family
from pgprune.models.registration import sliced_classes
from pgprune.repair.projection import wide
from pgprune.surgery.architecture import CLASS_KEYS, from_weights
from pgprune.surgery.stream_slices import Slices, centred

Weights = Iterator[tuple[str, Tensor]]


@torch.no_grad()
def slice_model(model: PreTrainedModel, slices: Slices) -> PreTrainedModel:
    """Makes the sliced model.

    Returns:
        A Hugging Face model of ``sliced_parameters`` parameters, on the same device, in evaluation
        mode. ``save_pretrained`` saves everything but the tokenizer.

    Raises:
        PruningError: the slices are of another model, or the model has no final norm.
    """
    count, dense = model.config.num_hidden_layers, model.config.hidden_size
    if slices.rotations.shape[:2] != (2 * count, dense):
        raise PruningError(
            f"the slices are of a model of {len(slices.rotations) // 2} layers and width "
            f"{slices.rotations.shape[1]}, but this one has {count} and {dense}; take the model "
            "that they were made for"
        )
    model_class = sliced_classes(model.config.model_type).causal_lm
    weights = {name: w.to(model.dtype).contiguous() for name, w in _weights(model, slices)}
    return from_weights(model, model_class, sliced_config(model, slices.width), weights)


def sliced_config(model: PreTrainedModel, width: int) -> Any:
    """Makes the configuration of a sliced model.

    Raises:
        PruningError: the model has no final norm.
    """
    classes = sliced_classes(model.config.model_type)
    values = {k: value for k, value in model.config.to_dict().items() if k not in CLASS_KEYS}
    values |= {"tie_word_embeddings": False, "use_cache": True}  # the head is not rotated
    return classes.config(
        **values,
        slice_width=width,
        norm_biases=_norm_biases(model),
        pgprune={"slice_fraction": 1 - width / model.config.hidden_size},
        auto_map=classes.auto_map,
    )


def check_sliceable(model: PreTrainedModel) -> None:
    """Checks that narrower layers can compute what those of a model do.

    Raises:
        PruningError: they cannot.
    """
    if not family_of(model.config).sliced:
        raise PruningError(
            f"SliceGPT cannot slice the family {model.config.model_type!r}, whose layers change "
            "what they add to the residual stream; choose a method that prunes units, such as "
            "wanda-sp"
        )


def sliced_parameters(model: PreTrainedModel, width: int) -> int:
    """Computes the exact number of parameters of a sliced model, on any device (meta included).

    Raises:
        PruningError: the model has no final norm.
    """
    family, dense = family_of(model.config), model.config.hidden_size
    norm_biases, head = _norm_biases(model), model.get_output_embeddings().weight
    count = head.numel() + norm_biases * len(head)  # a full head
    count += sum(width * len(table) for _, table in _tables(model, family))
    layers = decoder_layers(model, family)
    for index, layer in enumerate(layers):
        outputs = dense if index == len(layers) - 1 else width  # the last one writes D
        count += width * (width + outputs)  # shortcuts
        for path in _readers(family):
            linear: Any = layer.get_submodule(path)
            count += linear.out_features * (width + (norm_biases or linear.bias is not None))
        for path, rows in ((family.output, width), (family.down, outputs)):
            linear = layer.get_submodule(path)
            count += rows * (linear.in_features + (linear.bias is not None))
        count += sum(parameter.numel() for _, parameter in _others(layer, family))
    return count


def _weights(model: PreTrainedModel, slices: Slices) -> Weights:
    """Yields the weights of the sliced model by name, in the precision of the rotations."""
    family, rotations = family_of(model.config), slices.rotations
    final = _final_norm(model, family)
    for name, table in _tables(model, family):
        yield name, _written(table, final, rotations[0])
    yield from _read("lm_head", model.get_output_embeddings(), final, None)  # reads the full width
    layers, points = decoder_layers(model, family), [*rotations, None]  # 2 L and the unrotated end
    for index, layer in enumerate(layers):
        for name, weight in _layer_weights(layer, family, *points[2 * index : 2 * index + 3]):
            yield f"{family.layers}.{index}.{name}", weight


def _layer_weights(
    layer: nn.Module, family: Family, first: Tensor, second: Tensor, after: Tensor | None
) -> Weights:
    """Yields the weights of a layer for the rotations of its two points and of the next one."""
    norms = [layer.get_submodule(n[0]) for n in (family.attention_norms, family.mlp_norms)]
    for path in _readers(family):
        norm, rotation = (norms[1], second) if path in family.expand else (norms[0], first)
        linear: Any = layer.get_submodule(path)
        yield from _read(path, linear, norm, rotation)
    for path, target in ((family.output, second), (family.down, after)):
        linear = layer.get_submodule(path)
        yield f"{path}.weight", _written(linear.weight.T, norms[0], target).T
        if linear.bias is not None:
            yield f"{path}.bias", _written(linear.bias, norms[0], target)
    yield "attention_shortcut.weight", second.T @ first  # (width, width)
    # The last layer returns from its basis to the full width: (D, width).
    yield "mlp_shortcut.weight", second if after is None else after.T @ second
    yield from _others(layer, family)


def _read(path: str, linear: nn.Linear, norm: Any, rotation: Tensor | None) -> Weights:
    """Yields the parameters of a projection that reads the stream, with its norm folded in.

    W (gain * x R' + shift) + b = (W diag(gain) R) x + (W shift + b), for x in the rotated basis.
    """
    weight = wide(linear.weight)  # (rows, D)
    shift = getattr(norm, "bias", None)
    terms = [] if linear.bias is None else [wide(linear.bias)]
    terms += [] if shift is None else [weight @ wide(shift)]  # W shift
    if terms:
        yield f"{path}.bias", torch.stack(terms).sum(0)
    if norm.weight is not None:
        weight = weight * wide(norm.weight)  # W diag(gain)
    yield f"{path}.weight", weight if rotation is None else weight @ rotation.to(weight)


def _written(vectors: Tensor, norm: nn.Module, rotation: Tensor | None) -> Tensor:
    """Maps vectors written to the stream, (..., D), to the basis of a rotation, (..., width)."""
    vectors = centred(wide(vectors), norm)
    return vectors if rotation is None else vectors @ rotation.to(vectors)


def _readers(family: Family) -> tuple[str, ...]:
    """Returns the projections of a layer that read the stream."""
    return family.query, family.key, family.value, *family.expand


def _others(layer: nn.Module, family: Family) -> Weights:
    """Yields copies of the parameters that slicing does not change, such as norms of queries."""
    changed = (*_readers(family), family.output, family.down)
    norms = (family.attention_norms[0], family.mlp_norms[0])
    prefixes = tuple(f"{path}." for path in changed + norms)
    for name, parameter in layer.named_parameters():
        if not name.startswith(prefixes):
            yield name, parameter.clone()


def _tables(model: PreTrainedModel, family: Family) -> Weights:
    """Yields the embeddings that write to the stream: of tokens, and learned ones of positions."""
    tokens = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is tokens)
    for path in (name, family.positions):
        if path is not None:
            yield f"{path}.weight", model.get_submodule(path).get_parameter("weight")


def _final_norm(model: PreTrainedModel, family: Family) -> nn.Module:
    try:
        return model.get_submodule(family.final_norm)
    except AttributeError:  # OPT checkpoints from before transformers 4.20 may lack it
        raise PruningError(
            "a model without a norm before its head cannot be sliced; choose another method"
        ) from None


def _norm_biases(model: PreTrainedModel) -> bool:
    """Tells if norms add biases; the projections that follow then need biases too."""
    norm = _final_norm(model, family_of(model.config))
    return getattr(norm, "bias", None) is not None
