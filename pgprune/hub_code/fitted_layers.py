"""Layers of any stock class, cut to their sizes; a copy is beside ``modeling_pgprune.py``.

Some stock layers tie the number of heads to the width, or fuse projections. Such a layer is built
dense and opened, and its projections are then replaced by smaller ones. ``config.layout`` says
where everything is.
"""

import copy
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

from torch import nn

from .fused import Fused, count_heads, open_projections
from .layer_parts import Constant, Headless, add_biases, keep_values

_LLAMA: dict[str, Any] = {"layers": "layers", "attention": "self_attn", "head_counts": {}}


def layout_of(config: Any) -> Any:
    """Returns where things are in a model and its layers, and what is fused there.

    Attributes are as in pgprune's table of families: dotted paths from a layer, but for ``layers``,
    the name of their list. Without a layout in the configuration they are those of LLaMA.
    """
    return SimpleNamespace(**(_LLAMA | (getattr(config, "layout", None) or {})))


def fitted_layer(layer_class: type[nn.Module], config: Any, index: int) -> nn.Module:
    """Builds a layer of the sizes that its own configuration gives."""
    layout, own = layout_of(config), config.per_layer_config[index]
    dense, skip = copy.copy(config), getattr(own, "skip", ())
    dense.per_layer_config = None
    layer: Any = layer_class(dense, index)
    list(open_projections(layer, [Fused(*row) for row in layout.fused], dense))
    add_biases(layer, own)
    attention, down = layer.get_submodule(layout.attention), layer.get_submodule(layout.down)
    heads, output = own.num_attention_heads, layout.output.removeprefix(f"{layout.attention}.")
    if heads and "attention" not in skip:
        if layout.query:  # else nobody knows the heads, and all are kept
            width = heads * config.head_dim
            kv_width = width * layer.get_submodule(layout.key).out_features
            kv_width //= layer.get_submodule(layout.query).out_features
            rows = {layout.query: width, layout.key: kv_width, layout.value: kv_width}
            for path in rows:
                _fit(layer, path, rows=rows[path])
            _fit(layer, layout.output, columns=width)
            value = layout.value.removeprefix(f"{layout.attention}.")
            keep_values(attention, getattr(own, "value_dims", ()), output, value, config.head_dim)
    else:
        kept = None if "attention" in skip else attention
        layer.set_submodule(layout.attention, Headless(kept, output))
    channels = getattr(own, layout.channel_count)
    if channels is None:  # it follows from the width
        channels = down.in_features
    if channels and "mlp" not in skip:
        for path in layout.expand:
            _fit(layer, path, rows=channels)
        _fit(layer, layout.down, columns=channels)
    else:
        mlp, _, name = layout.down.rpartition(".")
        left = OrderedDict({name: Constant(None if "mlp" in skip else down)})
        layer.set_submodule(mlp, nn.Sequential(left))
    norms = {"attention": layout.attention_norms, "mlp": layout.mlp_norms}
    for path in (path for block in skip for path in norms[block]):
        layer.set_submodule(path, nn.Identity())
    return layer


def fit_head_counts(layer: nn.Module, config: Any, index: int) -> None:
    """Tells the attention of a layer how many heads it has; caches and servers read some, too."""
    layout, own = layout_of(config), config.per_layer_config[index]
    attention: Any = layer.get_submodule(layout.attention)
    if isinstance(attention, Headless):
        return
    heads = own.num_attention_heads
    kv_heads = getattr(own, "num_key_value_heads", heads)
    attention.num_heads, attention.num_key_value_heads = heads, kv_heads
    count_heads(attention, layout.head_counts, heads, kv_heads, getattr(own, "head_dim", 0))


def _fit(layer: Any, path: str, rows: int | None = None, columns: int | None = None) -> None:
    """Gives a projection another number of rows or columns."""
    old = layer.get_submodule(path)
    shape = columns or old.in_features, rows or old.out_features
    if shape != (old.in_features, old.out_features):
        layer.set_submodule(path, nn.Linear(*shape, bias=old.bias is not None))
