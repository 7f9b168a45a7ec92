"""Finds where an unknown decoder has its layers and projections: by shapes, names and probes.

A probe runs one layer on a few tokens and changes one output of one projection. What it changes of
the inputs of the others tells what they are: a channel reaches one input of the down projection, at
its own token; what crosses tokens goes through attention, whose output projection it reaches; and
the inputs that it reaches there are those of its head. ``pgprune.models.proof`` proves the row.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune.errors import PruningError, first_line
from pgprune.inspection.configurations import built
from pgprune.inspection.heads import find_heads, head_counts, named, some_units
from pgprune.inspection.probe import LayerInputs, Probe, layer_inputs, probe_ids
from pgprune.models.families import add_found, linear_at
from pgprune.models.family import Family
from pgprune.models.proof import FAILURES, prove
from pgprune.models.rows import FAMILIES

_WIDTHS = ("inter", "inner", "ffn", "ff")  # in names of a configuration's MLP width


def settle_family(name: str, model: PreTrainedModel, choice: str) -> None:
    """Finds and proves the row of a model whose family has none, for this process.

    Args:
        name: of the model, for errors.
        model: on its device, in evaluation mode.
        choice: ``auto``, or a family that it may be built as.

    Raises:
        PruningError: nothing of it could be proven.
    """
    try:
        row = discover(model) if choice == "auto" else FAMILIES[choice]
        add_found(model.config.model_type, prove(model, row))
    except FAILURES as error:
        raise PruningError(
            f"the model {name!r} of the family {model.config.model_type!r} cannot be used: "
            f"{first_line(error)}; give a model of a known family"
        ) from error


def discover(model: PreTrainedModel) -> Family:
    """Finds the row of a loaded causal LM of a family that has none.

    Args:
        model: on its device, in evaluation mode.

    Returns:
        The row, not yet proven. Units of a kind that were not found are refused by it.

    Raises:
        PruningError: layers, attention or MLP were not found, with what was found.
    """
    path = _layers_path(model)
    layers: Any = model.get_submodule(path)
    ids = probe_ids(model, 1)
    with torch.no_grad():
        return _row(model, path, layers[0], layer_inputs(model, layers, ids)[0])


def _layers_path(model: PreTrainedModel) -> str:
    """Finds the list of decoder layers: as many modules of one class as are configured."""
    count = getattr(model.config, "num_hidden_layers", None)
    lists = {path: m for path, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    found = [
        path
        for path, modules in lists.items()
        if len(modules) == count and not any(path.startswith(f"{other}.") for other in lists)
    ]
    if len(found) != 1:
        raise PruningError(
            f"{len(found)} lists of {count} layers were found (num_hidden_layers), such as "
            f"{', '.join(found) or 'none'}"
        )
    layers = lists[found[0]]
    first = _shapes(layers[0])
    for index, layer in enumerate(layers):
        if _shapes(layer) != first:
            odd = sorted(set(_shapes(layer).items()) ^ set(first.items()))
            raise PruningError(f"layers 0 and {index} differ, such as in {odd[0][0]}")
    return found[0]


def _shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in layer.named_parameters()}


def _row(model: PreTrainedModel, path: str, layer: nn.Module, inputs: LayerInputs) -> Family:
    probe = Probe(layer, inputs)
    width = inputs.args[0].shape[-1]
    output = _output(probe, width)
    attention = output.rpartition(".")[0]
    if not attention:
        raise PruningError(f"attention is no module of its own; it ends in {output}")
    refused: dict[str, str] = {}
    expand, down = _mlp(probe, width, attention, refused)
    before, after = _norms(probe, output, down, (attention, *expand, down))
    heads = find_heads(probe, attention, output)
    if isinstance(heads, str):
        refused |= dict.fromkeys(("heads", "values"), heads)
        heads = ("", "", "")
    query, key, value = heads
    row = Family(
        layers=path,
        attention=attention,
        query=query,
        key=key,
        value=value,
        output=output,
        expand=expand,
        down=down,
        attention_norms=before,
        mlp_norms=after,
        tuples=isinstance(layer(*inputs.args, **inputs.kwargs), tuple),
        attention_end=next((path for path in before if probe.follows(path, output)), None),
        mlp_end=next((path for path in after if probe.follows(path, down)), None),
        parallel=not set(probe.reached(output, 0)) & set(expand),
        head_counts=head_counts(probe, attention, query, key),
        refused=refused,
    )
    return replace(row, channel_count=_width_name(model, path, row))


def _output(probe: Probe, width: int) -> str:
    """Finds the first projection to the residual stream that another token reaches."""
    found = {
        name
        for path, linear in probe.linears.items()
        if linear.in_features == width and path in probe.plain.inputs
        for reached in _each_reached(probe, path)
        for name in _first(probe, reached, width)
        if bool(reached[name][2:].any())
    }
    order = [name for name in probe.plain.inputs if name in found]
    if not order:
        raise PruningError(
            f"no projection to the {width} hidden states has inputs that mix tokens, among "
            f"{named(probe.linears)}"
        )
    return order[0]


def _mlp(
    probe: Probe, width: int, attention: str, refused: dict[str, str]
) -> tuple[tuple[str, ...], str]:
    """Finds the projections of the MLP, a gate first, and says where channels cannot be pruned."""
    down_of: dict[str, str] = {}
    for path, linear in probe.linears.items():
        if path.startswith(f"{attention}.") or linear.in_features != width:
            continue
        for reached in _each_reached(probe, path):
            for name in _first(probe, reached, width):
                down_of.setdefault(path, name)
                unit_of = probe.linears[name].in_features
                if linear.out_features == 2 * unit_of:
                    refused["channels"] = f"{path} fuses two projections"
                elif linear.out_features != unit_of or int(reached[name].sum()) != 1:
                    refused["channels"] = f"an output of {path} reaches other inputs of {name}"
    downs = sorted(set(down_of.values()))
    if len(downs) != 1:
        raise PruningError(
            f"{len(downs)} MLPs of linear projections were found beside {attention}, among "
            f"{named(probe.linears)}"
        )
    (down,) = downs
    ups = [path for path in down_of if probe.negated(path, down)]
    gates = [path for path in down_of if path not in ups]
    if len(down_of) > 2 or (len(down_of) == 2 and not ups):
        refused["channels"] = f"{named(down_of)} are no gate and what it multiplies"
    return (*gates, *ups), down


def _norms(
    probe: Probe, output: str, down: str, parts: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divides what else has parameters into norms of the attention block and of the MLP block."""
    inside = tuple(f"{part}." for part in parts)
    attention, mlp = list[str](), list[str]()
    seen = probe.plain
    expands = [seen.inputs[part] for part in parts[1:-1]]
    queries = [x for path, x in seen.inputs.items() if path.startswith(inside[0])]
    for path, module in probe.layer.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        if not own or path in parts or path.startswith(inside):
            continue
        if path not in seen.inputs:
            raise PruningError(f"it is not known what {path or 'the layer'}.{own[0]} does")
        gets, gives = seen.inputs[path], seen.outputs[path]
        of_mlp = _among(gives, expands) and not _among(gives, queries)
        beside = path.rpartition(".")[0] == down.rpartition(".")[0] != ""
        after = _among(gets, [seen.outputs[down]])
        if beside or after or (of_mlp and not _among(gets, [seen.outputs[output]])):
            mlp.append(path)
        else:
            attention.append(path)
    return tuple(attention), tuple(mlp)


def _width_name(model: PreTrainedModel, layers: str, family: Family) -> str:
    """Finds the entry of a configuration that is the width of its MLPs; empty without one.

    It is the one with which a model is built whose MLPs, and nothing else, are narrower.
    """
    values = model.config.to_dict()
    down = f"{layers}.0.{family.down}"
    width = linear_at(model.get_submodule(layers)[0], family.down).in_features  # type: ignore
    named = [
        name
        for name, value in values.items()
        if any(part in name for part in _WIDTHS) and value in (width, None)
    ]
    mlp = (*family.expand, family.down)
    for name in sorted(named, key=lambda name: values[name] is None):
        try:
            made = built(model, values | {name: width - 1})
        except Exception:  # configurations and models refuse values by errors of all types
            continue
        changed = {
            path.rpartition(".")[0]
            for path, weight in made.named_parameters()
            if weight.shape != model.get_parameter(path).shape
        }
        narrow: Any = made.get_submodule(down)
        if narrow.in_features == width - 1 and all(path.endswith(mlp) for path in changed):
            return name
    return ""


def _first(probe: Probe, reached: dict[str, Tensor], width: int) -> list[str]:
    """Returns the first projection to the residual stream that was reached, if any was."""
    order = (name for name in probe.plain.inputs if name in reached)
    return [name for name in order if probe.linears[name].out_features == width][:1]


def _each_reached(probe: Probe, path: str) -> Iterator[dict[str, Tensor]]:
    return (probe.reached(path, unit) for unit in some_units(probe.linears[path].out_features))


def _among(tensor: Tensor, others: list[Tensor]) -> bool:
    return any(tensor.shape == other.shape and torch.equal(tensor, other) for other in others)
