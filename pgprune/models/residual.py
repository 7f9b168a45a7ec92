"""What a block adds to the residual stream, of the output of its last projection.

In most families it is that output. Gemma normalizes it first, Granite multiplies it by a constant.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pgprune.models.families import Family, linear_at


def added(layer: nn.Module, family: Family, kind: str, output: Tensor) -> Tensor:
    """Computes what a block adds to the residual stream, as its layer does.

    Args:
        layer: the decoder layer.
        family: of the model.
        kind: ``heads`` for the attention block, ``channels`` for the MLP.
        output: of the attention output or the down projection, (..., D).
    """
    norm = _norm(layer, family, kind)
    if norm is not None:
        output = norm(output)
    factor = _factor(layer, family)
    return output if factor is None else output * factor


@contextmanager
def additions(layer: nn.Module, family: Family) -> Iterator[list[Tensor]]:
    """Yields a list that gets what attention and then MLP add when the layer runs in the body."""
    parts: list[Tensor] = []

    def hook(kind: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        parts.append(added(layer, family, kind, output))

    hooks = [
        linear_at(layer, path).register_forward_hook(partial(hook, kind))
        for kind, path in (("heads", family.output), ("channels", family.down))
    ]
    try:
        yield parts
    finally:
        for each in hooks:
            each.remove()


def slope(
    layer: nn.Module, family: Family, kind: str, output: Callable[[], Tensor]
) -> Tensor | None:
    """Computes how much a small change of the output changes what is added, (..., 1).

    It leaves out the norm's gain, and that the norm removes changes along the output itself.

    Returns:
        None where it is 1.
    """
    norm, factor = _norm(layer, family, kind), _factor(layer, family)
    if norm is None and factor is None:
        return None
    size = output().square().mean(-1, keepdim=True)  # (..., 1)
    size = torch.ones_like(size) if norm is None else size.clamp(min=torch.finfo(size.dtype).tiny)
    return size.rsqrt() * (1 if factor is None else factor)


def before_adding(
    layer: nn.Module, family: Family, kind: str, wanted: Tensor, slopes: Tensor | None
) -> Tensor:
    """Computes the output of which a block would add what is wanted, (..., D).

    Any multiple of an output gives the same after a norm; the one of this ``slope`` is returned.
    """
    norm = _norm(layer, family, kind)
    if norm is not None:
        # At 1, a norm returns its gain.
        gain = norm(wanted.new_ones(wanted.shape[-1]))
        wanted = wanted / gain
    return wanted if slopes is None else wanted / slopes


def _norm(layer: nn.Module, family: Family, kind: str) -> nn.Module | None:
    path = family.attention_end if kind == "heads" else family.mlp_end
    return None if path is None else layer.get_submodule(path)


def _factor(layer: nn.Module, family: Family) -> Any:
    return None if family.multiplier is None else getattr(layer, family.multiplier)
