"""Model families as data: the paths of layers and projections in each Hugging Face architecture.

A new family is a new row of ``FAMILIES``; no other code names an architecture.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from pgprune.errors import PruningError

_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Family:
    """Dotted paths of the modules of a decoder, as in ``module.get_submodule``.

    Attributes:
        layers: the list of decoder layers, from the causal LM.
        attention: the attention module, from a layer.
        query: query projection, from a layer; its rows belong to query heads. Empty, as the next
            two, where they are not known; heads and value dimensions are then refused.
        key: key projection, from a layer; its rows belong to kv heads.
        value: value projection, from a layer; its rows belong to kv heads.
        output: attention output projection, from a layer; its columns belong to query heads.
        expand: MLP projections whose rows are channels, from a layer; a gate comes first.
        down: MLP projection whose columns are channels, from a layer.
        attention_norms: norms that belong to the attention block, from a layer.
        mlp_norms: norms that belong to the MLP block, from a layer.
        attention_end: the one of them that acts on the attention's output before it is added to the
            residual stream; None without one.
        mlp_end: likewise of the MLP.
        multiplier: the layer's attribute that multiplies what both blocks add to the residual
            stream; None without one.
        layer_lists: values of the configuration that are lists with an entry for each layer.
        sliced: whether SliceGPT's layers compute what those of the family do.
        channel_count: name of the configuration's MLP width.
        head_count: name of the attention module's attribute that must hold the number of heads,
            None where the number follows from the shapes.
        stock_heads: the numbers of heads that the stock configuration takes if all layers have
            the same number: ``any``; a ``divisor`` of the width; the ``dense`` model's only, where
            the size of a head is the width over their number.
        stand_in: ``model_type`` of the same network that takes any number of heads; for models
            without sliding window and biases.
        final_norm: the norm before the head, from the causal LM.
        positions: learned position embeddings, from the causal LM; None without them.
        gguf: llama.cpp's architecture for the pruned model; None without one.
        refused: why units of a kind cannot be pruned, after "because", by their kind.
    """

    layers: str
    attention: str
    query: str
    key: str
    value: str
    output: str
    expand: tuple[str, ...]
    down: str
    attention_norms: tuple[str, ...]
    mlp_norms: tuple[str, ...]
    attention_end: str | None = None
    mlp_end: str | None = None
    multiplier: str | None = None
    layer_lists: tuple[str, ...] = ("layer_types",)
    sliced: bool = True
    channel_count: str = "intermediate_size"
    head_count: str | None = None
    stock_heads: str = "any"
    stand_in: str | None = None
    final_norm: str = "model.norm"
    positions: str | None = None
    gguf: str | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def gated(self) -> bool:
        """Whether MLPs multiply a gate with the outputs of an up projection."""
        return len(self.expand) > 1

    @property
    def projections(self) -> dict[str, str]:
        """Paths of the projections that a repair refits, by the kind of unit that they belong to.

        A mask prunes inputs of the output (``heads``) and the down projection (``channels``), and
        outputs of the up projection of a gated MLP (``up``).
        """
        gated = {"up": self.expand[-1]} if self.gated else {}
        return {"heads": self.output, "channels": self.down} | gated


_LLAMA = Family(
    layers="model.layers",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    expand=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    attention_norms=("input_layernorm",),
    mlp_norms=("post_attention_layernorm",),
    gguf="deci",
)
_GEMMA = replace(
    _LLAMA,
    attention_norms=("input_layernorm", "post_attention_layernorm"),
    mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    attention_end="post_attention_layernorm",
    mlp_end="post_feedforward_layernorm",
    sliced=False,
    gguf=None,
)
_WIDE_NORMS = "its norms of queries and keys span all heads of a layer"
_OLMO = replace(
    _GEMMA,
    attention_norms=("post_attention_layernorm",),
    mlp_norms=("post_feedforward_layernorm",),
    refused={"heads": _WIDE_NORMS, "values": _WIDE_NORMS},
)

FAMILIES: dict[str, Family] = {
    "llama": replace(_LLAMA, stock_heads="divisor", stand_in="mistral"),
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": replace(_LLAMA, gguf="qwen3"),
    "opt": Family(
        layers="model.decoder.layers",
        attention="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        output="self_attn.out_proj",
        expand=("fc1",),
        down="fc2",
        attention_norms=("self_attn_layer_norm",),
        mlp_norms=("final_layer_norm",),
        channel_count="ffn_dim",
        head_count="num_heads",
        stock_heads="dense",
        final_norm="model.decoder.final_layer_norm",
        positions="model.decoder.embed_positions",
    ),
    "gemma": replace(_LLAMA, sliced=False, gguf=None),
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "granite": replace(_LLAMA, multiplier="residual_multiplier", sliced=False, gguf=None),
    "smollm3": replace(_LLAMA, layer_lists=("layer_types", "no_rope_layers"), gguf=None),
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "ministral3": replace(_LLAMA, gguf=None),
    "seed_oss": replace(_LLAMA, gguf=None),
    "hunyuan_v1_dense": replace(_LLAMA, gguf=None),
    "arcee": replace(_LLAMA, expand=("mlp.up_proj",), stock_heads="divisor", gguf=None),
}
"""Every supported family by its Hugging Face ``model_type``."""


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
    if model_type not in FAMILIES:
        raise PruningError(
            f"the model family {model_type!r} is not supported; known families: "
            f"{', '.join(sorted(FAMILIES))}"
        )
    if getattr(config, "do_layer_norm_before", True) is False:  # only opt-350m
        raise PruningError(
            "OPT with norms after its blocks (do_layer_norm_before=false, as opt-350m) is not "
            "supported, because a norm would still act where a block is gone; take another size"
        )
    return FAMILIES[model_type]


def check_kinds(config: Any, kinds: Iterable[str]) -> None:
    """Checks that units of some kinds can be pruned in the family of a configuration.

    Raises:
        PruningError: they cannot.
    """
    for kind, reason in family_of(config).refused.items():
        if kind in kinds:
            raise PruningError(
                f"units of the kind {kind!r} cannot be pruned in the family "
                f"{config.model_type!r}, because {reason}; choose another --granularity"
            )


def projection_of(model: nn.Module, layer: int, kind: str) -> nn.Linear | None:
    """Returns a projection of ``Family.projections``; None if the model lacks it.

    Args:
        model: a causal LM of a known family.
        layer: index of the layer.
        kind: ``heads``, ``channels`` or ``up``.
    """
    family = family_of(model.config)
    layers, path = decoder_layers(model, family), family.projections.get(kind)
    return linear_at(layers[layer], path) if path is not None and layer < len(layers) else None


def decoder_layers(model: nn.Module, family: Family) -> nn.ModuleList:
    """Returns the list of decoder layers of a causal LM."""
    layers = model.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def head_sizes(layer: nn.Module, family: Family) -> tuple[int, int, int]:
    """Returns kv heads, query heads of each, and their size; of unknown heads, one of all inputs.

    Args:
        layer: a decoder layer.
        family: of the model.
    """
    if not family.query:
        return 1, 1, linear_at(layer, family.output).in_features
    head_dim: Any = layer.get_submodule(family.attention).head_dim
    query, key = (linear_at(layer, path).out_features for path in (family.query, family.key))
    return key // head_dim, query // key, head_dim


def linear_at(layer: nn.Module, path: str) -> nn.Linear:
    """Returns a projection of a layer, as ``get_submodule`` does in ten times the time."""
    module: Any = layer
    for name in path.split("."):
        module = module._modules[name]
    assert isinstance(module, nn.Linear), f"{path} is not a linear projection"
    return module
