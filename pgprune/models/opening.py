"""Opens fused projections of a model, which still saves and loads its stock weights.

All code works on plain linear projections at the paths of a ``Family``. The weights of an open
module are in ``state_dict`` under their stock names and in their stock layout, so what is made of
an open model by ``save_pretrained`` is a stock checkpoint.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from pgprune.hub_code.fused import Fused, close_weights, head_dim, open_projections, split


def open_layers(layers: Iterable[nn.Module], rows: Sequence[Fused], config: Any) -> None:
    """Opens the fused projections of layers in place; those that are open stay so.

    Args:
        layers: decoder layers of a dense or pruned model.
        rows: what is fused in each.
        config: of the model.
    """
    for layer in layers:
        for row, module in open_projections(layer, rows, config):
            size = head_dim(row, config)
            module.register_state_dict_post_hook(partial(_close, row, size))
            module.register_load_state_dict_pre_hook(partial(_open, row, size))


def _close(
    row: Fused, size: int | None, module: nn.Module, weights: dict[str, Tensor], prefix: str, _: Any
) -> None:
    """Closes the weights of a module that ``state_dict`` has just collected."""
    close_weights(weights, prefix, row, size)


def _open(
    row: Fused,
    size: int | None,
    module: nn.Module,
    weights: dict[str, Tensor],
    prefix: str,
    *others: Any,
) -> None:
    """Opens weights that ``load_state_dict`` is about to give to a module."""
    parts: Any = [module.get_submodule(part) for part in row.parts] or [module]
    for kind in ("weight", "bias"):
        if (stock := weights.pop(f"{prefix}{kind}", None)) is None:
            continue
        joined = stock if row.transposed else stock.t()  # (inputs, outputs)
        opened = split(joined, [part.out_features for part in parts], size)
        names = [f"{prefix}{part}.{kind}" for part in row.parts] or [f"{prefix}{kind}"]
        weights.update({name: part.t() for name, part in zip(names, opened, strict=True)})
