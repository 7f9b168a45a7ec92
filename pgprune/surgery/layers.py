"""Surgery: a mask becomes layers that are physically smaller, and a model with the same logits.

What a mask prunes is cut out of the weights: kv groups with their query heads, MLP channels, whole
blocks with their norms. Layers of which nothing is left are dropped and the others renumbered. The
parameters that go are those that the units count, exactly: a layer whose heads are all pruned
keeps its norm, because heads and channels cost neither norms nor the biases of the output and down
projections, which stay; a pruned block or layer costs all it has. A repair brings other weights for
what is kept, and perhaps biases where the dense model has none.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune.errors import PruningError
from pgprune.masking.layer_mask import LayerMask, rows_of_groups
from pgprune.masking.units import LayerShape, PruningUnits
from pgprune.models.families import Family, decoder_layers, family_of
from pgprune.repair.repair import Repair
from pgprune.surgery.architecture import PrunedLayer, assemble


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
    units.check_mask(mask)
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
def prune(
    model: PreTrainedModel, units: PruningUnits, mask: Tensor, repair: Repair | None = None
) -> PreTrainedModel:
    """Cuts what a mask prunes out of a model.

    Args:
        model: a dense causal LM of a known family; it is not changed and shares no weights with
            the result.
        units: its units.
        mask: (n,) of zeros and ones, 1 keeps.
        repair: what comes with the mask.

    Returns:
        A Hugging Face model with ``units.pruned_parameters(mask)`` parameters less (and those of
        the biases that the repair adds more), on the same device, in evaluation mode.
        ``save_pretrained`` saves everything but the tokenizer.

    Raises:
        PruningError: the mask is over other units, or leaves no layer.
    """
    return assemble(model, units, pruned_layers(model, units, mask, repair))


@torch.no_grad()
def pruned_layers(
    model: PreTrainedModel, units: PruningUnits, mask: Tensor, repair: Repair | None = None
) -> list[PrunedLayer]:
    """The layers that a mask leaves of a model, with their weights.

    Args:
        model: a dense causal LM of a known family.
        units: its units.
        mask: (n,) of zeros and ones, 1 keeps.
        repair: what comes with the mask.

    Returns:
        The layers that stay, in order, with copies of the weights.

    Raises:
        PruningError: as ``plan_layers``.
    """
    family = family_of(model.config)
    layers, changes = decoder_layers(model, family), repair or Repair()
    return [
        _pruned_layer(
            layers[plan.index],
            plan,
            units.shapes[plan.index],
            family,
            changes.parameters(plan.index, family),
        )
        for plan in plan_layers(units, mask, family)
    ]


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
        gone = block_names(plan.skip, family)
        for name, parameter in layer.named_parameters():
            if name.startswith(gone):
                parameter.zero_()
        shape = units.shapes[index]
        for kept, total, cuts in (
            (plan.heads, shape.kv_heads, head_cuts),
            (plan.channels, shape.channels, channel_cuts),
        ):
            if kept is not None:
                pruned = torch.ones(total, dtype=torch.bool).index_fill(0, kept, False)
                for name, dim, index_ in cuts(pruned.nonzero().flatten(), shape, family, layer):
                    parameter = layer.get_parameter(name)
                    parameter.index_fill_(dim, index_.to(parameter.device), 0)
    return model


def _gone(part: LayerMask, block: str) -> bool:
    """Whether a mask prunes a whole block, and not the units in it."""
    keep = part.by_kind.get(block, part.by_kind.get("layer"))
    return keep is not None and not bool(keep[0, 0])


def _pruned_layer(
    layer: nn.Module,
    plan: LayerPlan,
    shape: LayerShape,
    family: Family,
    changes: dict[str, Tensor],
) -> PrunedLayer:
    own = {name for name, _ in layer.named_parameters()}
    weights = layer_weights(layer, plan, shape, family, changes)
    heads = shape.kv_heads if plan.heads is None else len(plan.heads)
    channels = shape.channels if plan.channels is None else len(plan.channels)
    return PrunedLayer(
        index=plan.index,
        kv_heads=0 if "attention" in plan.skip else heads,
        channels=0 if "mlp" in plan.skip else channels,
        skip=plan.skip,
        weights=weights,
        biases=tuple(name.rpartition(".")[0] for name in weights if name not in own),
    )


def layer_weights(
    layer: nn.Module,
    plan: LayerPlan,
    shape: LayerShape,
    family: Family,
    changes: dict[str, Tensor],
) -> dict[str, Tensor]:
    """The weights that a plan leaves of a layer.

    Args:
        layer: of the dense model.
        plan: what is kept of it.
        shape: of the layer.
        family: of the model.
        changes: what takes the place of dense parameters or joins them, by name.

    Returns:
        Copies by the names of the dense layer's parameters. What a skipped block had is absent, as
        is what has no rows or no columns left; of heads or channels that are all pruned there
        remain the norms and the bias of the output projection.
    """
    gone = block_names(plan.skip, family)
    like = next(layer.parameters())
    every: dict[str, Tensor] = dict(layer.named_parameters())
    every |= {name: new.to(every.get(name, like), copy=True) for name, new in changes.items()}
    weights = {name: weight for name, weight in every.items() if not name.startswith(gone)}
    for kept, cuts in ((plan.heads, head_cuts), (plan.channels, channel_cuts)):
        for name, dim, index in cuts(kept, shape, family, layer) if kept is not None else ():
            if len(index):
                weights[name] = weights[name].index_select(dim, index.to(weights[name].device))
            else:
                del weights[name]
    return {
        name: weight.clone() if isinstance(weight, nn.Parameter) else weight
        for name, weight in weights.items()
    }


def block_names(blocks: tuple[str, ...], family: Family) -> tuple[str, ...]:
    """What the names of the parameters of a layer's blocks begin with, their norms included.

    Args:
        blocks: of ``attention`` and ``mlp``.
        family: of the model.
    """
    modules: tuple[str, ...] = ()
    if "attention" in blocks:
        modules += (family.attention, *family.attention_norms)
    if "mlp" in blocks:
        modules += (*family.expand, family.down, *family.mlp_norms)
    return tuple(f"{module}." for module in modules)


Cuts = Iterator[tuple[str, int, Tensor]]


def head_cuts(groups: Tensor, shape: LayerShape, family: Family, layer: nn.Module) -> Cuts:
    """Where kv groups (h,) lie: names of parameters, dimensions and indices along them."""
    rows, queries = (
        torch.from_numpy(rows_of_groups(groups.numpy(), width))
        for width in (shape.head_dim, shape.head_dim * shape.query_heads_per_group)
    )
    for path, index in ((family.key, rows), (family.value, rows), (family.query, queries)):
        for name, _ in layer.get_submodule(path).named_parameters():
            yield f"{path}.{name}", 0, index
    yield f"{family.output}.weight", 1, queries


def channel_cuts(channels: Tensor, shape: LayerShape, family: Family, layer: nn.Module) -> Cuts:
    """Where channels (c,) lie: names of parameters, dimensions and indices along them."""
    for path in family.expand:
        for name, _ in layer.get_submodule(path).named_parameters():
            yield f"{path}.{name}", 0, channels
    yield f"{family.down}.weight", 1, channels
