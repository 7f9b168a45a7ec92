"""The shapes of decoder layers: how many units of each kind they have, and what one costs."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from pgprune.models.families import decoder_layers, family_of, head_sizes, linear_at
from pgprune.models.family import Family


@dataclass(frozen=True)
class LayerShape:
    """The numbers of kv heads, channels and experts of a decoder layer, and what each costs.

    Attributes:
        kv_heads: kv heads; one kv group is a kv head with all its query heads.
        query_heads_per_group: query heads of one kv group.
        head_dim: width of one head.
        channels: width of the MLP; of every expert in a layer with experts, and 0 in others of its
            model, where channels are no units.
        kv_group_cost: parameters of one kv group: its rows of q, k, v with their biases, and its
            columns of the output projection.
        value_cost: parameters of one value dimension of a kv head: its row of v with its bias, and
            its columns of the output projection, one for each query head.
        channel_cost: parameters of one channel; in a layer with experts, of one in each of them.
        attention_cost: parameters of the whole attention block, norms and biases included.
        mlp_cost: parameters of the whole MLP block, norm and biases included.
        experts: experts of a mixture, 0 in a layer without.
        experts_per_token: how many of them a token uses.
        expert_cost: parameters of one expert with its row of the router.
        router_row_cost: parameters of that row.
        expert_channel_cost: parameters of one channel of one expert.
    """

    kv_heads: int
    query_heads_per_group: int
    head_dim: int
    channels: int
    kv_group_cost: int
    value_cost: int
    channel_cost: int
    attention_cost: int
    mlp_cost: int
    experts: int = 0
    experts_per_token: int = 0
    expert_cost: int = 0
    router_row_cost: int = 0
    expert_channel_cost: int = 0

    @property
    def query_key_cost(self) -> int:
        """Parameters of a kv group that are none of its value dimensions: rows of q and k."""
        return self.kv_group_cost - self.head_dim * self.value_cost


def shapes_of(config: PretrainedConfig) -> list[LayerShape]:
    """Returns the shapes of the decoder layers of a model from its configuration alone."""
    with torch.device("meta"):  # builds the modules without memory for their weights
        shadow = AutoModelForCausalLM.from_config(config)
    return list(layer_shapes(shadow))


def layer_shapes(model: nn.Module) -> Iterator[LayerShape]:
    """Yields the shape of each decoder layer, from its weights.

    Raises:
        PruningError: the model's family is unknown.
    """
    whole = family_of(getattr(model, "config", None))
    for layer in decoder_layers(model, whole):
        family = whole.of(layer)
        kv_heads, per_group, head_dim = head_sizes(layer, family)
        query, key, value = (
            _row_cost(layer, path) for path in (family.query, family.key, family.value)
        )
        # A kv group owns its rows of k and v, the rows of its query heads, and their columns of o.
        value_cost = value + per_group * linear_at(layer, family.output).out_features
        yield LayerShape(
            kv_heads=kv_heads,
            query_heads_per_group=per_group,
            head_dim=head_dim,
            kv_group_cost=head_dim * (key + per_group * query + value_cost),
            value_cost=value_cost,
            attention_cost=_parameters(layer, (family.attention, *family.attention_norms)),
            mlp_cost=_parameters(layer, (*family.expand, family.down, *family.mlp_norms)),
            **(_channels(layer, family) if family.experts is None else _experts(layer, family)),
        )


def _channels(layer: nn.Module, family: Family) -> dict[str, int]:
    """Returns what a shape says of the channels of an MLP."""
    down = linear_at(layer, family.down)
    cost = sum(_row_cost(layer, path) for path in family.expand) + down.out_features
    return {"channels": down.in_features, "channel_cost": cost}


def _experts(layer: nn.Module, family: Family) -> dict[str, int]:
    """Returns what a shape says of the experts of a layer, or of an MLP in their place."""
    assert family.experts is not None
    router = family.experts.router_of(layer)
    if router is None:
        return {"channels": 0, "channel_cost": 0}
    experts = layer.get_submodule(family.experts.experts)
    row = sum(part[0].numel() for part in router.parameters())
    width, count = family.experts.width_of(layer), len(router.weight)
    of_channels = sum(
        layer.get_parameter(p.name).numel() for p in family.experts.channel_parts(layer)
    )
    of_experts = sum(experts.get_parameter(name).numel() for name in family.experts.inner)
    return {
        "channels": width,
        "channel_cost": of_channels // width,
        "expert_channel_cost": of_experts // (width * count),
        "experts": count,
        "experts_per_token": int(router.top_k),
        "expert_cost": row + sum(part[0].numel() for part in experts.parameters()),
        "router_row_cost": row,
    }


def _row_cost(layer: nn.Module, path: str) -> int:
    """Counts the parameters of one output of a projection, its bias included; 0 without a path."""
    linear = linear_at(layer, path) if path else None
    return 0 if linear is None else linear.in_features + (linear.bias is not None)


def _parameters(layer: nn.Module, paths: tuple[str, ...]) -> int:
    return sum(p.numel() for path in paths for p in layer.get_submodule(path).parameters())
