"""What a model family is to all code: where in a Hugging Face architecture everything is."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from pgprune.hub_code.fused import Fused
from pgprune.models.experts import Experts


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
        down: MLP projection whose columns are channels, from a layer; of a mixture of experts, the
            whole MLP, and nothing expands.
        attention_norms: norms that belong to the attention block, from a layer.
        mlp_norms: norms that belong to the MLP block, from a layer.
        attention_end: the one of them that acts on the attention's output before it is added to the
            residual stream; None without one.
        mlp_end: likewise of the MLP.
        multiplier: the layer's attribute that multiplies what both blocks add to the residual
            stream; None without one.
        layer_lists: values of the configuration that are lists with an entry for each layer.
        sliced: whether SliceGPT's layers compute what those of the family do.
        bos: whether every window of tokens begins with BOS, without which the model fails.
        channel_count: name of the configuration's MLP width, or of that of its experts.
        head_counts: attributes of the attention module that must fit its projections, as
            ``count_heads`` takes them; none where the numbers follow from the shapes.
        head_dim: name of the attention module's width of a head.
        fused: projections that the stock layer fuses or stores transposed; the paths above are
            those after they were opened.
        fitted: whether layers that differ are cut out of dense ones, as they are if something is
            fused, because their modules are not called as those of LLaMA.
        parallel: whether the MLP reads what attention reads, and not what it writes.
        stock_heads: the numbers of heads that the stock configuration takes if all layers have
            the same number: ``any``; a ``divisor`` of the width; any if the rotary embedding is
            ``unscaled`` and queries and keys have no norms; the ``dense`` model's only, where the
            size of a head is the width over their number.
        stand_in: ``model_type`` of the same network that takes any number of heads; for models
            without sliding window and biases.
        final_norm: the norm before the head, from the causal LM.
        positions: learned position embeddings, from the causal LM; None without them.
        embeddings: further modules that embed tokens, for each layer, from the causal LM.
        gguf: llama.cpp's architecture for the pruned model; None without one.
        experts: where the experts of a mixture are; None where every token uses the whole MLP.
        tuples: whether a layer returns a tuple, with the states first.
        recurrent: the module that is in the place of attention in layers of another kind, and its
            output projection; a cache does not count tokens there. None without such layers.
        alone: whether the attention module returns its output alone, and not in a tuple.
        rest: whether a layer does more than to add to the states what its blocks give.
        own_width: values of a layer whose MLP is as wide as ``channel_count`` says, where some
            layers of the dense model multiply it.
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
    bos: bool = False
    channel_count: str = "intermediate_size"
    head_counts: Mapping[str, str] = field(default_factory=dict)
    head_dim: str = "head_dim"
    fused: tuple[Fused, ...] = ()
    parallel: bool = False
    fitted: bool = False
    stock_heads: str = "any"
    stand_in: str | None = None
    final_norm: str = "model.norm"
    positions: str | None = None
    embeddings: tuple[str, ...] = ()
    gguf: str | None = None
    experts: Experts | None = None
    tuples: bool = False
    recurrent: tuple[str, str] | None = None
    alone: bool = False
    rest: bool = False
    own_width: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def of(self, layer: nn.Module) -> "Family":
        """Returns the paths in one layer, which may be of the other kind."""
        if self.recurrent is None or not hasattr(layer, self.recurrent[0]):
            return self
        attention, output = self.recurrent
        return replace(self, attention=attention, output=output, alone=True)

    @property
    def gated(self) -> bool:
        """Whether MLPs multiply a gate with the outputs of an up projection."""
        return len(self.expand) > 1

    @property
    def layout(self) -> dict[str, Any] | None:
        """What the code that travels with an export must know of layers that it cuts to size.

        None where the stock class builds layers of any size.
        """
        if not (self.fused or self.fitted):
            return None
        paths = ("attention", "query", "key", "value", "output", "expand", "down")
        others = ("attention_norms", "mlp_norms", "channel_count", "head_counts", "fused")
        values = {name: getattr(self, name) for name in (*paths, *others)}
        return values | {"layers": self.layers.rpartition(".")[2]}

    @property
    def linears(self) -> tuple[str, ...]:
        """Paths of all projections that are known, from a layer."""
        paths = (self.query, self.key, self.value, self.output, *self.expand, self.down)
        return tuple(path for path in paths if path)

    @property
    def projections(self) -> dict[str, str]:
        """Paths of the projections that a repair refits, by the kind of unit that they belong to.

        A mask prunes inputs of the output (``heads``) and the down projection (``channels``), and
        outputs of the up projection of a gated MLP (``up``).
        """
        if self.experts is not None:
            return {"heads": self.output}
        gated = {"up": self.expand[-1]} if self.gated else {}
        return {"heads": self.output, "channels": self.down} | gated

    @property
    def refitted(self) -> dict[str, tuple[str, str]]:
        """Names, in a layer, of the weight and the bias that a repair refits, by kind.

        They are those of the projections and, in a mixture, of the down projections of all
        experts together (``experts``).
        """
        names = {
            kind: (f"{path}.weight", f"{path}.bias") for kind, path in self.projections.items()
        }
        if self.experts is None:
            return names
        module = self.experts.experts
        return names | {"experts": (f"{module}.down_proj", f"{module}.down_proj_bias")}


REFUSED = (
    (
        "do_layer_norm_before",
        False,
        "OPT with norms after its blocks (do_layer_norm_before=false, as opt-350m) is not "
        "supported, because a norm would still act where a block is gone; take another size",
    ),
    (
        "scale_attn_by_inverse_layer_idx",
        True,
        "GPT-2 whose attention depends on the number of its layer (scale_attn_by_inverse_layer_idx"
        "=true) is not supported, because pruned layers change these numbers; take another model",
    ),
    (
        "enable_moe_block",
        True,
        "Gemma 4 with experts beside the MLP of each layer (enable_moe_block=true) is not "
        "supported, because one norm ends both; take another size",
    ),
    (
        "add_cross_attention",
        True,
        "GPT-2 that reads an encoder (add_cross_attention=true) is not supported, because masks "
        "are for decoders of text; take another model",
    ),
)
"""Variants that masks cannot describe: configuration key, its value there, and the reason."""
