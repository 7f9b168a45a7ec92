"""Surgery: makes physically smaller layers of a mask, and a model with the same logits.

It cuts what a mask prunes out of the weights: kv groups with their query heads, value dimensions,
MLP channels, experts with their rows of the router, whole blocks with their norms. A kv group
without value dimensions is cut as a whole. Empty layers are dropped and the others renumbered. The
removed parameters are exactly those that the units count: a layer whose heads are all pruned keeps
its norm, because the cost of heads and channels includes neither norms nor the biases of the output
and down projections; the cost of a block or layer includes everything. A repair brings other
weights for kept units, and perhaps biases that the dense model lacks.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune.errors import PruningError
from pgprune.masking.layer_mask import LayerMask
from pgprune.masking.units import PruningUnits
from pgprune.models.families import decoder_layers, family_of, is_found
from pgprune.models.family import Family
from pgprune.models.shapes import LayerShape
from pgprune.repair.repair import Repair
from pgprune.surgery.architecture import assemble
from pgprune.surgery.cuts import (
    LayerPlan,
    block_names,
    channel_cuts,
    head_cuts,
    layer_cuts,
    value_cuts,
)
from pgprune.surgery.found import check_pruned
from pgprune.surgery.pruned_layer import PrunedLayer


def plan_layers(units: PruningUnits, mask: Tensor, family: Family) -> list[LayerPlan]:
    """Plans what to keep of each layer that a mask (n,) keeps, in order.

    Raises:
        PruningError: the mask is over other units, keeps no layer, or in a layer fewer experts
            than a token uses.
    """
    units.check_mask(mask)
    _check_least(units, mask)
    plans = []
    for index in range(units.layers):
        layer_mask = LayerMask(mask.cpu()[None], units, index, family)
        skip = tuple(block for block in ("attention", "mlp") if _is_pruned(layer_mask, block))
        heads, values = (
            None if "attention" in skip else layer_mask.kept(kind, "attention")
            for kind in ("heads", "values")
        )
        channels = None if "mlp" in skip else layer_mask.kept("channels", "mlp")
        if len(skip) < 2:  # else nothing of the layer is kept
            experts = layer_mask.kept("experts", "mlp") if "experts" in units.kinds else None
            plans.append(LayerPlan(index, heads, values, channels, skip, experts))
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
        repair: of the mask.

    Returns:
        A Hugging Face model with ``units.pruned_parameters(mask)`` parameters less, plus those of
        the biases that the repair adds, on the same device, in evaluation mode.
        ``save_pretrained`` saves everything but the tokenizer.

    Raises:
        PruningError: the mask is over other units, or keeps no layer.
    """
    smaller = assemble(model, units, pruned_layers(model, units, mask, repair))
    if is_found(model.config):
        bare = pruned_layers(model, units, mask)
        check_pruned(model, units, mask, assemble(model, units, bare) if repair else smaller)
    return smaller


@torch.no_grad()
def pruned_layers(
    model: PreTrainedModel, units: PruningUnits, mask: Tensor, repair: Repair | None = None
) -> list[PrunedLayer]:
    """Cuts the layers that a mask (n,) and its repair keep out of a dense model.

    Returns:
        The kept layers, in order, with copies of the weights.

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
            family.of(layers[plan.index]),
            changes.parameters(plan.index, family.of(layers[plan.index])),
        )
        for plan in plan_layers(units, mask, family)
    ]


@torch.no_grad()
def zero_pruned(model: PreTrainedModel, units: PruningUnits, mask: Tensor) -> PreTrainedModel:
    """Fills what a mask (n,) prunes with zeros, in the dense model itself, and returns it.

    Raises:
        PruningError: the mask is over other units, leaves no layer or prunes experts.
    """
    family = family_of(model.config)
    layers = decoder_layers(model, family)
    plans = {plan.index: plan for plan in plan_layers(units, mask, family)}
    if any(plan.experts is not None for plan in plans.values()):
        raise PruningError(
            "a model with zeros in place of pruned experts would still send tokens to them; "
            "choose --format hf"
        )
    for index, layer in enumerate(layers):
        plan = plans.get(index, LayerPlan(index, None, None, None, ("attention", "mlp")))
        gone = block_names(plan.skip, family.of(layer))
        for name, parameter in layer.named_parameters():
            if name.startswith(gone):
                parameter.zero_()
        shape = units.shapes[index]
        for kept, total, cuts in (
            (plan.heads, shape.kv_heads, head_cuts),
            (plan.values, shape.kv_heads * shape.head_dim, value_cuts),
            (plan.channels, shape.channels, channel_cuts),
        ):
            if kept is not None:
                pruned = torch.ones(total, dtype=torch.bool).index_fill(0, kept, False)
                for name, dim, index_ in cuts(pruned.nonzero().flatten(), shape, family, layer):
                    parameter = layer.get_parameter(name)
                    parameter.index_fill_(dim, index_.to(parameter.device), 0)
    return model


def _check_least(units: PruningUnits, mask: Tensor) -> None:
    """Refuses masks that leave a layer too few experts to run."""
    kept = units.kept_counts(mask.cpu()[None])[0]  # (groups,)
    for group in torch.nonzero(kept < units.needed).flatten().tolist():
        raise PruningError(
            f"the mask keeps {int(kept[group])} {units.groups[group].kind} in layer "
            f"{units.groups[group].layer}, but each token uses {int(units.needed[group])}; keep "
            "more of them"
        )


def _is_pruned(mask: LayerMask, block: str) -> bool:
    """Tells if a mask prunes a block as one unit, or its whole layer."""
    keep = mask.by_kind.get(block, mask.by_kind.get("layer"))
    return keep is not None and not bool(keep[0, 0])


def _pruned_layer(
    layer: nn.Module, plan: LayerPlan, shape: LayerShape, family: Family, changes: dict[str, Tensor]
) -> PrunedLayer:
    dense_names = _stored(layer).keys()
    weights = layer_weights(layer, plan, shape, family, changes)
    heads = shape.kv_heads if plan.heads is None else len(plan.heads)
    channels = shape.channels if plan.channels is None else len(plan.channels)
    return PrunedLayer(
        index=plan.index,
        kv_heads=0 if "attention" in plan.skip else heads,  # a skipped block has no units
        channels=0 if "mlp" in plan.skip else channels,
        skip=plan.skip,
        weights=weights,
        biases=tuple(name.rpartition(".")[0] for name in weights if name not in dense_names),
        value_dims=_value_dims(plan, shape),
        experts=shape.experts if plan.experts is None else len(plan.experts),
    )


def _value_dims(plan: LayerPlan, shape: LayerShape) -> tuple[int, ...]:
    """Counts the value dimensions that each kept kv head keeps; empty if they keep all."""
    if plan.values is None:
        return ()
    counts = torch.bincount(plan.values // shape.head_dim, minlength=shape.kv_heads)
    kept = counts[counts > 0].tolist()
    return () if set(kept) <= {shape.head_dim} else tuple(kept)


def layer_weights(
    layer: nn.Module, plan: LayerPlan, shape: LayerShape, family: Family, changes: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Copies the kept weights of a layer.

    Returns:
        Copies by the names of the dense layer's parameters, without those of skipped blocks and
        those that have no rows or columns left. If all heads or all channels are pruned, the norms
        and the bias of the output projection remain.
    """
    like = next(layer.parameters())
    dense = _stored(layer)
    dense |= {name: new.to(dense.get(name, like), copy=True) for name, new in changes.items()}
    skipped = block_names(plan.skip, family)
    weights = {name: weight for name, weight in dense.items() if not name.startswith(skipped)}
    cuts = layer_cuts(layer, plan, shape, family)
    for name, along in cuts.items():
        for dim, index in along.items():
            # index_select copies, so the result shares no memory with the dense model.
            weights[name] = weights[name].index_select(dim, index.to(weights[name].device))
        if not weights[name].numel():
            del weights[name]  # a matrix without rows or columns
    return {  # what was neither cut nor replaced is still that of the dense model
        name: weight if name in cuts or name in changes else weight.clone()
        for name, weight in weights.items()
    }


def _stored(layer: nn.Module) -> dict[str, Tensor]:
    """Returns what a layer saves: parameters by their open names, and what is not learned."""
    saved = layer.state_dict().keys()  # in which opened projections have their stock names
    buffers = {name: buffer for name, buffer in layer.named_buffers() if name in saved}
    return dict(layer.named_parameters()) | buffers
