"""What a block adds to the residual stream, of the output of its last projection.

In most families it is that output. Gemma normalizes it first, Granite multiplies it by a constant.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pgprune.models.family import Family

_DAMPING = 0.01  # relative to the mean square of gains


def added(layer: nn.Module, family: Family, kind: str, output: Any) -> Tensor:
    """Computes what a block adds to the residual stream, as its layer does.

    Args:
        layer: the decoder layer.
        family: of the model.
        kind: ``heads`` for the attention block, ``channels`` for the MLP.
        output: of the attention output or the down projection, (..., D); of an MLP that returns
            more, all of that.
    """
    output = output[0] if isinstance(output, tuple) else output
    norm = _norm(layer, family, kind)
    if norm is not None:
        output = norm(output)
    factor = _factor(layer, family)
    return output if factor is None else output * factor


@contextmanager
def additions(layer: nn.Module, family: Family) -> Iterator[list[Tensor]]:
    """Yields a list that gets what attention and then MLP add when the layer runs in the body."""
    parts: list[Tensor] = []

    def hook(kind: str, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        parts.append(added(layer, family, kind, output))

    hooks = [
        layer.get_submodule(path).register_forward_hook(partial(hook, kind))
        for kind, path in (("heads", family.of(layer).output), ("channels", family.down))
    ]
    try:
        yield parts
    finally:
        for each in hooks:
            each.remove()


def adds_its_output(family: Family, kind: str) -> bool:
    """Tells if a block adds the output of its last projection as it is."""
    return _end(family, kind) is None and family.multiplier is None


def slope(layer: nn.Module, family: Family, kind: str, output: Tensor) -> Tensor:
    """Computes how much small changes of the output (..., D) change the stream: (..., 1).

    It leaves out the norm's gain, and that the norm removes changes along the output itself.
    """
    size = output.square().mean(-1, keepdim=True).clamp(min=torch.finfo(output.dtype).tiny)
    inverse = torch.ones_like(size) if _end(family, kind) is None else size.rsqrt()
    factor = _factor(layer, family)
    return inverse if factor is None else inverse * factor


def in_the_stream(layer: nn.Module, family: Family, kind: str, weight: Tensor) -> Tensor:
    """Multiplies the rows of a block's last weight (D, inputs) by the gains of the norm behind it.

    With the ``slope`` of a token, its product with a change of the inputs is what the stream gets.
    """
    norm = _norm(layer, family, kind)
    return weight if norm is None else weight * norm(weight.new_ones(len(weight)))[:, None]


def wanted_output(
    layer: nn.Module, family: Family, kind: str, wanted: Tensor, output: Tensor
) -> Tensor:
    """Computes the output, near a given one, of which a block adds nearly what is wanted.

    With slope s and gain g the step is that of a damped Newton method, g d / s (g^2 + r): where
    the gain is almost 0, no output reaches the stream, and the given one stays.

    Args:
        layer: the decoder layer.
        family: of the model.
        kind: as in ``added``.
        wanted: to be added to the stream, (..., D).
        output: (..., D), in whose neighbourhood the norm's divisor is taken as constant.
    """
    missing = wanted - added(layer, family, kind, output)
    norm = _norm(layer, family, kind)
    if norm is not None:
        gain: Tensor = norm(missing.new_ones(missing.shape[-1]))  # at ones, a norm gives its gain
        missing = missing * gain / (gain.square() + _DAMPING * gain.square().mean())
    return output + missing / slope(layer, family, kind, output)


def _end(family: Family, kind: str) -> str | None:
    return family.attention_end if kind == "heads" else family.mlp_end


def _norm(layer: nn.Module, family: Family, kind: str) -> nn.Module | None:
    path = _end(family, kind)
    return None if path is None else layer.get_submodule(path)


def _factor(layer: nn.Module, family: Family) -> Any:
    return None if family.multiplier is None else getattr(layer, family.multiplier)
